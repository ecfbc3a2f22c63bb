"""`cascade data info`: its figures are the pack's, near and far, and of an array data set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from cascade.data import grid
from cascade.data.pack import MANIFEST
from cascade.packing import sheet
from cascade.packing.looking import describe_data
from cascade.packing.sheet import contact_sheet, evenly

Command = Callable[..., Any]


@pytest.fixture
def pack(tmp_path: Path, write_pack: Any, record: Any) -> Path:
    folder = tmp_path / "pack"
    write_pack(
        folder,
        {
            "train-0": [
                record("a", ("one two three",), (64, 64), 1, "CC0", "https://x.org/a.png"),
                record("b", ("a", "a b c d e"), (128, 96), 2, "CC0", "https://x.org/d/b?c=1"),
                record("c", ("é è  ê",), (128, 96), 3, "", "photos/c.png", {"score": 0.5}),
            ],
            "train-1": [record("d", size=(30, 60), source="d.png", numbers={"score": -2.0})],
            "validation-0": [record("e", size=(300, 200), source="photos/e.png")],
        },
        {"small": 7},
    )
    return folder


def test_the_figures_are_the_packs(pack: Path) -> None:
    found = describe_data(str(pack))
    sizes = {name: (pack / f"{name}.tar").stat().st_size for name in ("train-0", "train-1")}
    assert (found.pictures, found.captions) == (5, 6)
    assert found.splits["train"] == {"pictures": 4, "shards": 2, "bytes": sum(sizes.values())}
    assert found.splits["validation"]["pictures"] == 1
    assert found.disk == sum(path.stat().st_size for path in pack.glob("*.tar"))
    assert found.spreads["width"]["50%"] == 128
    assert found.spreads["height"]["max"] == 200
    assert (found.spreads["words"]["min"], found.spreads["words"]["max"]) == (1, 5)
    assert found.spreads["captions"]["mean"] == 6 / 5
    assert (found.spreads["score"]["min"], found.spreads["score"]["max"]) == (-2.0, 0.5)
    assert found.histograms["side"] == {
        "below 64": 1,
        "64 to 127": 3,
        "128 to 255": 1,
    }
    assert found.histograms["captions"] == {"1": 4, "2": 1}
    aspects = {name: count for name, count in found.histograms["aspect"].items() if count}
    assert aspects == {"1:2": 1, "1:1": 1, "4:3": 2, "3:2": 1}
    assert found.tops == {
        "size": {"128x96": 2, "300x200": 1, "30x60": 1, "64x64": 1},
        "licence": {"": 3, "CC0": 2},
        "source": {"photos": 2, "x.org": 2, "": 1},
    }
    assert found.left_out == {"small": 7}


def test_a_far_pack_tells_the_same_and_is_not_kept(pack: Path, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for path in pack.iterdir():
        system.pipe_file(f"/look/{path.name}", path.read_bytes())
    far = describe_data("memory://look")
    near = describe_data(str(pack))
    assert far.place == "memory://look"
    assert {**vars(far), "place": ""} == {**vars(near), "place": ""}
    one, other = (contact_sheet(place, 5, 0) for place in (str(pack), "memory://look"))
    assert one.tobytes() == other.tobytes()


def test_an_array_data_set_is_described_too(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.full((3, 3, 16, 16), 200, dtype=np.uint8))
    (tmp_path / "captions.jsonl").write_text('["a", "b c"]\n"d"\n"e f g"\n')
    (tmp_path / "dataset.json").write_text('{"licence": "CC0"}')
    found = describe_data(str(tmp_path))
    assert (found.pictures, found.captions) == (3, 4)
    assert found.tops["size"] == {"16x16": 3}
    assert found.tops["licence"] == {"CC0": 3}
    assert found.histograms["captions"] == {"1": 2, "2": 1}
    assert contact_sheet(str(tmp_path), 3, 0).getcolors(1 << 20)


def test_the_command_prints_tables_or_json_and_draws(
    pack: Path, tmp_path: Path, command: Command
) -> None:
    shown = command("data", "info", pack)
    assert shown.status == 0
    for words in ("validation", "64 to 127", "x.org", "not stated", "small", "score"):
        assert words in shown.out
    told = command("data", "info", pack, "--json", "--sheet", tmp_path / "s.png", "--pictures", 2)
    assert json.loads(told.out)["pictures"] == 5
    with Image.open(tmp_path / "s.png") as drawn:
        assert drawn.format == "PNG"


def test_a_sheet_has_each_picture_above_its_caption(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Image.Image] = {}

    def drawn(rows: Any, captions: Any, **more: Any) -> Image.Image:
        for row, below in zip(rows, captions, strict=True):
            seen.update(zip(below, row, strict=True))
        return grid.image_grid(rows, captions=captions, **more)

    monkeypatch.setattr(sheet, "image_grid", drawn)
    contact_sheet(str(pack), 99, 0)
    assert {caption: picture.size for caption, picture in seen.items()} == {
        "one two three": (64, 64),
        "a": (128, 96),
        "é è  ê": (128, 96),
        "a dog": (300, 200),  # of d and of e, the later one
    }


def test_a_picture_that_cannot_be_decoded_leaves_its_place_empty(
    tmp_path: Path, write_pack: Any, record: Any
) -> None:
    write_pack(tmp_path, {"train-0": [record("a"), record("b", picture=b"no picture")]})
    assert contact_sheet(str(tmp_path), 2, 0).size == contact_sheet(str(tmp_path), 2, 1).size


@pytest.mark.parametrize(("total", "count"), [(1, 48), (48, 48), (49, 48), (10**9, 48), (7, 3)])
def test_pictures_are_taken_one_from_each_equal_part(total: int, count: int) -> None:
    taken = evenly(total, count, 0)
    count = min(total, count)
    assert len(taken) == count
    for part, index in enumerate(taken.tolist()):
        assert total * part // count <= index < total * (part + 1) // count
    if total > 10 * count:
        assert evenly(total, count, 1).tolist() != taken.tolist()


def test_what_is_no_data_set_is_told(tmp_path: Path, command: Command) -> None:
    done = command("data", "info", tmp_path)
    assert done.status == 2
    assert MANIFEST in done.err
    assert "images.npy" in done.err
