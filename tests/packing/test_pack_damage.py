"""Whatever is wrong with a source, each of its pictures is packed or told of, once."""

import errno
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cascade.config.pack import PackConfig
from cascade.errors import UserError
from cascade.packing import files
from cascade.packing.plan import Part
from cascade.packing.records import Found, LeftOut
from cascade.packing.run import pack
from cascade.packing.tars import Tar

Left = Callable[[Path], dict[str, str]]
KEYS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def sound(tar_of: Callable[..., bytes], picture: Callable[..., bytes]) -> bytes:
    members = []
    for number, key in enumerate(KEYS):
        members += [(f"{key}.jpg", picture(number)), (f"{key}.txt", f"the {key}".encode())]
    return tar_of(members)


def read(data: bytes, folder: Path) -> tuple[list[Found], list[LeftOut]]:
    path = folder / "d.tar"
    path.write_bytes(data)
    found = list(Tar(Part(0, "tar", str(path), "d.tar"), {}).read())
    return (
        [one for one in found if isinstance(one, Found)],
        [one for one in found if isinstance(one, LeftOut)],
    )


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 2**16))
def test_a_cut_tar_gives_what_is_before_the_cut(at: int, sound: bytes, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(sound)) as tar:
        # A member's bytes are filled up to blocks, and nobody misses those.
        ends = {one.name: one.offset_data + one.size for one in tar}
    cut = at % (max(ends.values()) + 512)
    found, left = read(sound[:cut], tmp_path)
    whole = [key for key in KEYS if ends[f"{key}.txt"] <= cut]
    texts = [one for one in found if one.text is not None]
    assert [one.text for one in texts] == [f"the {key}".encode() for key in whole]
    # Of a record that was cut between its members, the picture is left without its caption.
    assert [one.source for one in found if one.text is None] in (
        [],
        *([f"d.tar/{key}.jpg"] for key in KEYS[len(whole) : len(whole) + 1]),
    )
    assert [one.source for one in left] == ["d.tar"]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 2**16), scribble=st.binary(min_size=1, max_size=600))
def test_a_scribble_over_a_tar_never_crashes(
    at: int, scribble: bytes, sound: bytes, tmp_path: Path
) -> None:
    place = at % len(sound)
    found, left = read(sound[:place] + scribble + sound[place + len(scribble) :], tmp_path)
    assert len(found) <= len(KEYS)
    for one in left:
        json.loads(one.dump())


def test_a_sound_tar_leaves_nothing_out(sound: bytes, tmp_path: Path) -> None:
    found, left = read(sound, tmp_path)
    assert [one.source for one in found] == [f"d.tar/{key}.jpg" for key in KEYS]
    assert left == []


@pytest.mark.parametrize("data", [b"", b"no tar", bytes(10_240)])
def test_what_is_no_tar_is_told(data: bytes, tmp_path: Path) -> None:
    found, left = read(data, tmp_path)
    assert found == []
    assert len(left) == (data != bytes(10_240))  # that is a tar of nothing


def test_records_that_are_not_as_they_should_be(
    tmp_path: Path,
    tar_of: Callable[..., bytes],
    picture: Callable[..., bytes],
    left_of: Left,
    rows_of: Callable[[Path], list[dict[str, Any]]],
) -> None:
    good = picture(0)
    members = [
        *(("two.left.jpg", good), ("two.right.jpg", good), ("two.txt", b"a")),
        *(("mask.jpg", good), ("mask.seg.png", good), ("mask.txt", b"with a mask")),
        *(("none.txt", b"a"), ("phone.heic", b"x"), ("phone.txt", b"a")),
        *(("json.jpg", good), ("json.json", b"{")),
        *(("half.jpg", good[:-200]), ("half.txt", b"a")),
        *(("latin.jpg", good), ("latin.txt", b"caf\xe9")),
        *(("nothing.jpg", good), ("nothing.json", b'{"caption": null, "captions": [" "]}')),
        *(("odd.jpg", good), ("odd.json", b'{"caption": "half \\ud800", "n": 1e999, "m": 1}')),
        *(("list.jpg", good), ("list.json", b'["one", "two"]')),
    ]
    (tmp_path / "d.tar").write_bytes(tar_of(members))
    pack(PackConfig(sources=(str(tmp_path / "d.tar"),), output=tmp_path / "pack", workers=1))
    rows = rows_of(tmp_path / "pack")
    assert [row["captions"] for row in rows] == [["with a mask"], ["half ?"], ["one", "two"]]
    assert [row["m"] for row in rows] == [None, 1.0, None]
    left = left_of(tmp_path / "pack")
    told = {source: reason.partition(":")[0] for source, reason in left.items()}
    assert told == {
        "d.tar/two": "several pictures",
        "d.tar/none": "no picture",
        "d.tar/phone": "a kind of picture that cannot be read here",
        "d.tar/json": "its JSON cannot be read",
        "d.tar/half.jpg": "cannot be decoded",
        "d.tar/latin.jpg": "its caption is not UTF-8 text",
        "d.tar/nothing.jpg": "no caption",
    }


@pytest.mark.parametrize("kind", ["footer", "middle"])
def test_a_damaged_parquet_file(
    kind: str,
    tmp_path: Path,
    picture: Callable[..., bytes],
    left_of: Left,
    rows_of: Callable[[Path], list[dict[str, Any]]],
) -> None:
    pictures = [picture(number) for number in range(6)]
    table = pa.table({"jpg": pictures, "text": [f"number {number}" for number in range(6)]})
    file = tmp_path / "a" / "damaged.parquet"
    file.parent.mkdir()
    parquet.write_table(table, file, row_group_size=2)
    parquet.write_table(table, file.parent / "whole.parquet")
    data = bytearray(file.read_bytes())
    if kind == "footer":
        data = data[: len(data) // 2]
    else:
        column = parquet.ParquetFile(file).metadata.row_group(1).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(data)
    pack(PackConfig(sources=(str(file.parent),), output=tmp_path / "pack", workers=1))
    sources = [row["source"] for row in rows_of(tmp_path / "pack")]
    kept = [] if kind == "footer" else [f"a/damaged.parquet#{number}" for number in (0, 1, 4, 5)]
    assert sources == [*kept, *(f"a/whole.parquet#{number}" for number in range(6))]
    ((source, reason),) = left_of(tmp_path / "pack").items()
    assert source.startswith("a/damaged.parquet")
    assert "cannot be read" in reason


def test_files_that_go_or_are_links_to_nowhere(
    tmp_path: Path, picture: Callable[..., bytes], left_of: Left
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(picture(0))
    (folder / "a.txt").write_text("a dog")
    (folder / "link.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "round").symlink_to(tmp_path, target_is_directory=True)
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    os.mkfifo(folder / "pipe.jpg")  # reading it would never end
    manifest = pack(PackConfig(sources=(str(folder),), output=tmp_path / "pack", workers=1))
    assert sum(shard.records for shard in manifest.shards) == 1
    assert left_of(tmp_path / "pack") == {
        "photos/link.jpg": "its file is not there",
        "photos/loop.jpg": "its file cannot be read",
    }


def test_a_store_that_does_not_answer_is_asked_again(
    tmp_path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.tar").write_bytes(sound)
    config = PackConfig(sources=(str(tmp_path / "d.tar"),), output=tmp_path / "pack", workers=1)
    monkeypatch.setattr("cascade.data.place._FIRST_WAIT", 0.0)
    monkeypatch.setattr(files, "_BUFFER", 4096)
    fails, file_system = 0, files.file_system

    class Failing(io.FileIO):
        """A file that a network loses in the middle."""

        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal fails
            if self.tell() > 6000 and fails:
                fails -= 1
                raise OSError(errno.EIO, "gone")
            return super().read(-1 if size is None else size)

    def failing(address: str) -> tuple[Any, str]:
        system, root = file_system(address)

        class System:
            isdir, exists = system.isdir, system.exists

            def open(self, path: str, mode: str) -> Failing:
                return Failing(path, mode)

        return System(), root

    monkeypatch.setattr(files, "file_system", failing)
    fails = 10
    with pytest.raises(UserError, match=r"d\.tar could not be read \(.*gone\).*it goes on"):
        pack(config)
    fails = 2
    manifest = pack(config)
    assert (manifest.left_out, manifest.shards[0].records) == ({}, len(KEYS))
