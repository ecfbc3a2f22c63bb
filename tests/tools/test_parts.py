"""Files survive being carried in parts, and damage on the way is noticed."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cascade.errors import UserError

LENGTH = 5000
PART = 0.002  # MiB: three parts


@pytest.fixture
def parts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as the GPU suite sees it."""
    monkeypatch.syspath_prepend(str(repository / "tools"))
    yield importlib.import_module("gpu.parts")
    for name in ("gpu.parts", "gpu"):
        sys.modules.pop(name, None)


@pytest.fixture
def carried(parts: ModuleType, tmp_path: Path) -> Path:
    """A folder with `weights.bin` in three parts; the file itself lies in its parent."""
    data = np.random.default_rng(0).integers(0, 256, LENGTH, dtype=np.uint8)
    (tmp_path / "weights.bin").write_bytes(data.tobytes())
    parts.split(tmp_path / "weights.bin", tmp_path / "carried", PART)
    return tmp_path / "carried"


def test_parts_make_the_file_again(parts: ModuleType, carried: Path, tmp_path: Path) -> None:
    found = sorted(carried.glob("*.part-*"))
    assert [path.stat().st_size for path in found] == [2097, 2097, LENGTH - 2 * 2097]
    parts.join(carried / "weights.bin.parts.json", tmp_path / "joined")
    joined = (tmp_path / "joined" / "weights.bin").read_bytes()
    assert joined == (tmp_path / "weights.bin").read_bytes()


def test_a_damaged_part_is_refused(parts: ModuleType, carried: Path, tmp_path: Path) -> None:
    part = carried / "weights.bin.part-01"
    data = bytearray(part.read_bytes())
    data[7] ^= 1
    part.write_bytes(data)
    with pytest.raises(UserError, match=r"part-01 is damaged; fetch it again"):
        parts.join(carried / "weights.bin.parts.json", tmp_path / "joined")
    assert not (tmp_path / "joined" / "weights.bin").exists()


def test_lacking_parts_are_named(parts: ModuleType, carried: Path, tmp_path: Path) -> None:
    (carried / "weights.bin.part-02").unlink()
    with pytest.raises(UserError, match=r"weights.bin.part-02 lack beside"):
        parts.join(carried / "weights.bin.parts.json", tmp_path)


def test_a_manifest_writes_nowhere_else(parts: ModuleType, carried: Path, tmp_path: Path) -> None:
    manifest = carried / "weights.bin.parts.json"
    manifest.write_text(manifest.read_text().replace('"weights.bin"', '"../weights.bin"'))
    with pytest.raises(UserError, match="names files of other folders"):
        parts.join(manifest, tmp_path / "joined")


def test_only_whole_sets_are_joined_in_place(parts: ModuleType, carried: Path) -> None:
    last = carried / "weights.bin.part-02"
    kept = last.read_bytes()
    last.unlink()
    parts.join_complete(carried)
    assert not (carried / "weights.bin").exists()
    last.write_bytes(kept)
    parts.join_complete(carried)
    assert [path.name for path in carried.iterdir()] == ["weights.bin"]
