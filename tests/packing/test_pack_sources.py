"""Every kind of source becomes a pack whose records are what the source had."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cascade.config.pack import PackConfig
from cascade.errors import UserError
from cascade.packing.run import pack

Rows = list[dict[str, Any]]


@pytest.fixture
def packed(tmp_path: Path, rows_of: Callable[[Path], Rows]) -> Callable[..., Rows]:
    def run(*sources: object, **settings: Any) -> Rows:
        config = PackConfig(
            sources=tuple(map(str, sources)), output=tmp_path / "pack", workers=1, **settings
        )
        pack(config)
        return rows_of(tmp_path / "pack")

    return run


def test_a_folder_with_captions_beside_its_pictures(
    tmp_path: Path,
    packed: Callable[..., Rows],
    picture: Callable[..., bytes],
    left_of: Callable[[Path], Mapping[str, str]],
) -> None:
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.jpg").write_bytes(picture(1))
    (folder / "b.txt").write_text(" a dog \n\na wet dog\na dog\n", encoding="utf-8-sig")
    (folder / "inner" / "a.JPEG").write_bytes(picture(2, (20, 30)))
    (folder / "inner" / "a.json").write_text('{"caption": "a cat", "score": 3, "ok": true}')
    (folder / "c.png").write_bytes(picture(3, kind="PNG"))
    (folder / "c.txt").write_text("\n")
    (folder / "d.webp").write_bytes(b"no picture")
    (folder / "d.txt").write_text("a fish")
    (folder / "e.heic").write_bytes(b"")
    (folder / "f.mp4").write_bytes(b"")
    (folder / ".hidden.jpg").write_bytes(b"")
    first, second = packed(folder)
    assert first["picture"] == picture(1)
    assert first["captions"] == ["a dog", "a wet dog"]
    assert (first["source"], first["score"]) == ("photos/b.jpg", None)
    assert (second["width"], second["height"], second["captions"]) == (20, 30, ["a cat"])
    assert (second["source"], second["score"], second["ok"]) == ("photos/inner/a.JPEG", 3.0, 1.0)
    left = left_of(tmp_path / "pack")
    assert left.keys() == {"photos/c.png", "photos/d.webp", "photos/e.heic"}
    assert left["photos/c.png"] == "no caption"
    assert left["photos/d.webp"].startswith("cannot be decoded: ")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_folder_with_a_table_as_of_an_imagefolder(
    kind: str,
    tmp_path: Path,
    packed: Callable[..., Rows],
    picture: Callable[..., bytes],
    left_of: Callable[[Path], Mapping[str, str]],
) -> None:
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(("a.png", "inner/b.png", "c.png")):
        (folder / name).write_bytes(picture(number, kind="PNG"))
    said = [
        {"file_name": "inner/b.png", "text": "two, dogs", "score": 2.5, "license": "CC0"},
        {"file_name": "a.png", "text": "a dog", "score": 1.5, "license": "MIT"},
        {"file_name": "gone.png", "text": "nothing", "score": 0.5, "license": ""},
        {"file_name": "./a.png", "text": "the dog", "score": 9.5, "license": ""},
    ]
    table = pa.Table.from_pylist(said)
    if kind == "parquet":
        parquet.write_table(table, folder / "metadata.parquet")
    elif kind == "csv":
        from pyarrow import csv

        csv.write_csv(table, folder / "metadata.csv")
    else:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, said)))
    first, second = packed(folder)
    assert [first["captions"], second["captions"]] == [["a dog", "the dog"], ["two, dogs"]]
    assert [first["score"], second["score"]] == [1.5, 2.5]
    assert [first["licence"], second["licence"]] == ["MIT", "CC0"]
    assert left_of(tmp_path / "pack") == {
        "photos/c.png": "no caption",
        f"photos/metadata.{kind}: gone.png": "its file is not there",
    }


def test_tars_in_a_list_in_braces(
    tmp_path: Path,
    packed: Callable[..., Rows],
    picture: Callable[..., bytes],
    tar_of: Callable[..., bytes],
) -> None:
    note = {"captions": ["x", "y"], "url": "http://a/b", "License": "CC0", "width": 7, "n": 0.5}
    for number in range(2):
        members = [
            (f"./in/{number}.a.jpg", picture(number)),  # an ending of two parts
            (f"./in/{number}.a.json", json.dumps(note).encode()),
            (f"./in/{number}.t5.npy", b""),
            ("other.png", picture(5 + number, kind="PNG")),
            ("other.txt", "über\nunter".encode()),
        ]
        (tmp_path / f"d-{number + 9:03}.tar").write_bytes(tar_of(members))
    rows = packed(tmp_path / "d-{009..010}.tar")
    assert [row["captions"] for row in rows] == [["x", "y"], ["über", "unter"]] * 2
    assert [row["n"] for row in rows] == [0.5, None] * 2
    assert (rows[0]["source"], rows[0]["licence"]) == ("http://a/b", "CC0")
    assert rows[3]["source"] == "d-010.tar/other.png"
    assert [row["picture"] for row in rows[:2]] == [picture(0), picture(5, kind="PNG")]


def test_classes_get_captions(
    tmp_path: Path,
    packed: Callable[..., Rows],
    picture: Callable[..., bytes],
    tar_of: Callable[..., bytes],
) -> None:
    members = []
    for key, label in (("a", b"1"), ("b", b"goose\n"), ("c", b"2")):
        members += [(f"{key}.cls", label), (f"{key}.jpg", picture(ord(key)))]
    (tmp_path / "d.tar").write_bytes(tar_of(members))
    with pytest.raises(UserError, match="--class-names"):
        packed(tmp_path / "d.tar")
    (tmp_path / "names.txt").write_text("hen\nduck\n")
    (tmp_path / "pack").rename(tmp_path / "unfinished")
    rows = packed(
        tmp_path / "d.tar", class_names=tmp_path / "names.txt", class_caption="one {} alone"
    )
    assert [row["captions"] for row in rows] == [["one duck alone"], ["one goose alone"]]


@pytest.mark.parametrize("kind", ["bytes", "struct", "paths"])
def test_parquet_files(
    kind: str, tmp_path: Path, packed: Callable[..., Rows], picture: Callable[..., bytes]
) -> None:
    held: list[object] = []
    for number in range(5):
        name = f"{number}.jpg"
        (tmp_path / name).write_bytes(picture(number))
        held.append(
            {
                "bytes": picture(number),
                "struct": {"bytes": picture(number), "path": name},
                "paths": name,
            }[kind]
        )
    table = pa.table(
        {
            "image": held,
            "TEXT": [f"number {number}" for number in range(5)],
            "score": [1, 2, 3, 4, None],
            "embedding": [[0.5]] * 5,
        }
    )
    file = tmp_path / "train.parquet"
    parquet.write_table(table, file, row_group_size=2)
    rows = packed(file, shard_records=2)
    assert [row["picture"] for row in rows] == [picture(number) for number in range(5)]
    assert [row["captions"] for row in rows] == [[f"number {number}"] for number in range(5)]
    assert [row["score"] for row in rows] == [1.0, 2.0, 3.0, 4.0, None]
    assert [row["source"] for row in rows] == [f"train.parquet#{number}" for number in range(5)]


def test_an_array_data_set(tmp_path: Path, packed: Callable[..., Rows]) -> None:
    folder = tmp_path / "array"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    (folder / "captions.jsonl").write_text('"a"\n["b", "c"]\n"d"\n"e"\n"f"\n')
    (folder / "dataset.json").write_text('{"licence": "CC0"}')
    rows = packed(folder, shard_records=2)
    for row, image in zip(rows, images, strict=True):
        seen = np.asarray(Image.open(io.BytesIO(row["picture"])))
        assert np.array_equal(seen, image.transpose(1, 2, 0))
    assert [row["captions"] for row in rows] == [["a"], ["b", "c"], ["d"], ["e"], ["f"]]
    assert {row["licence"] for row in rows} == {"CC0"}


def test_an_address_of_an_object_store(
    packed: Callable[..., Rows], picture: Callable[..., bytes], tar_of: Callable[..., bytes]
) -> None:
    store = fsspec.filesystem("memory")
    for number in range(40):  # more than are asked for at once
        store.pipe(f"/packing/photos/in/{number:02}.jpg", picture(number))
        store.pipe(f"/packing/photos/in/{number:02}.txt", f"number {number}".encode())
    store.pipe("/packing/d.tar", tar_of([("b.jpg", picture(2)), ("b.txt", b"a cat")]))
    rows = packed("memory://packing/photos", "memory://packing/{d,d}.tar")
    store.rm("/packing", recursive=True)
    captions = [row["captions"][0] for row in rows]
    assert captions == [*(f"number {number}" for number in range(40)), "a cat", "a cat"]
    assert [row["picture"] for row in rows[:40]] == [picture(number) for number in range(40)]
    assert rows[0]["source"] == "photos/in/00.jpg"


def test_a_pack_is_packed_again_and_keeps_what_is_held_out(
    tmp_path: Path,
    packed: Callable[..., Rows],
    rows_of: Callable[[Path], Rows],
    picture: Callable[..., bytes],
    tar_of: Callable[..., bytes],
) -> None:
    for part in range(2):
        members: list[tuple[str, bytes]] = []
        for key in range(20):
            note = json.dumps({"caption": f"number {key}", "score": key}).encode()
            # The same twenty pictures twice: equal ones are all held out, or none.
            members += [(f"{key}.jpg", picture(key)), (f"{key}.json", note)]
        (tmp_path / f"{part}.tar").write_bytes(tar_of(members))
    before = packed(tmp_path / "{0,1}.tar", held_out=0.3)
    (tmp_path / "pack").rename(tmp_path / "before")
    splits = {(row["captions"][0], row["split"]) for row in before}
    assert len(splits) == 20
    assert {split for _, split in splits} == {"train", "validation"}
    for share in (0.0, 0.3):
        again = packed(tmp_path / "before", held_out=share, where=("score<15",))
        known = {(row["captions"][0], row["split"]) for row in again}
        assert known == {(name, split) for name, split in splits if int(name.split()[1]) < 15}
        (tmp_path / "pack").rename(tmp_path / f"again-{share}")
