"""What every reader of a pack shares: its manifest, indexes in parts, parts of far files."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from cascade.data.pack import COLUMNS, MANIFEST, PackManifest, read_index
from cascade.data.place import Place
from cascade.errors import UserError


def test_a_manifest_is_read_back_and_damage_is_told(
    tmp_path: Path, write_pack: Any, record: Any
) -> None:
    written = write_pack(tmp_path, {"train-0": [record("a")]})
    assert PackManifest.load(tmp_path / MANIFEST) == written
    (tmp_path / MANIFEST).write_text('{"shards": []}')
    with pytest.raises(UserError, match="shards"):
        PackManifest.load(tmp_path / MANIFEST)


def test_an_index_is_read_in_parts(
    tmp_path: Path, write_pack: Any, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade.data.pack._ROWS", 2)
    write_pack(tmp_path, {"train-0": [record(name) for name in "abcde"]})
    parts = list(read_index(tmp_path / "train-0.parquet", ["key"]))
    assert [part.column("key").to_pylist() for part in parts] == [["a", "b"], ["c", "d"], ["e"]]
    assert set(COLUMNS) == set(next(read_index(tmp_path / "train-0.parquet")).schema.names)


def test_what_is_no_index_is_told(tmp_path: Path, write_pack: Any, record: Any) -> None:
    write_pack(tmp_path, {"train-0": [record("a")]})
    index = tmp_path / "train-0.parquet"
    with pytest.raises(UserError, match="no column 'score'"):
        list(read_index(index, ["score"]))
    index.write_bytes(index.read_bytes()[:-10])
    with pytest.raises(UserError, match="copy the data again"):
        list(read_index(index))


def test_a_part_of_a_file_is_the_same_from_near_and_far(tmp_path: Path) -> None:
    data = bytes(range(256))
    (tmp_path / "x.tar").write_bytes(data)
    with fsspec.open("memory://parts/x.tar", "wb") as file:
        file.write(data)
    near, far = Place(str(tmp_path), tmp_path), Place("memory://parts", tmp_path / "cache")
    for offset, size in ((0, 3), (100, 50), (250, 6), (250, 100)):
        assert near.read("x.tar", offset, size) == data[offset : offset + size]
        assert far.read("x.tar", offset, size) == data[offset : offset + size]
    assert not (tmp_path / "cache").exists()


def test_what_a_store_lacks_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slept(seconds: float) -> None:
        raise AssertionError("it was asked again")

    monkeypatch.setattr("time.sleep", slept)
    with pytest.raises(UserError, match=r"There is no x\.tar in memory://nothing"):
        Place("memory://nothing", tmp_path).fetch("x.tar")


def test_what_arrives_wrong_is_asked_for_again_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    with fsspec.open("memory://wrong/x.tar", "wb") as file:
        file.write(b"other")
    with pytest.raises(UserError, match=r"could not be read .*another checksum"):
        Place("memory://wrong", tmp_path).fetch("x.tar", "0" * 64)
    assert waited == [0.5, 1.0, 2.0, 4.0]
    assert not list(tmp_path.rglob("*x.tar*.partial"))
    assert not list(tmp_path.rglob("x.tar"))
