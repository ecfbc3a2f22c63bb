"""Objects set into other scenes: where they are, what they are called, and what stays the same."""

import random
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

SCRIPTS = ("compose", "cutouts", "packs", "captions", "boxes")


@pytest.fixture
def scripts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts beside their neighbours, as `python tools/pretrain/prepare.py` sees them."""
    monkeypatch.syspath_prepend(str(repository / "tools" / "pretrain"))
    pytest.importorskip("onnxruntime")
    yield SimpleNamespace(**{name: import_module(name) for name in SCRIPTS})
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def _cutout(compose: ModuleType, captions: ModuleType) -> object:
    """A red square of 20 pixels, wholly inside its mask."""
    image = Image.new("RGB", (20, 20), (255, 0, 0))
    subject = captions.Subject("teapot")
    return compose.Cutout(image, Image.new("L", (20, 20), 255), subject)


def _scenery() -> dict[str, list[Image.Image]]:
    return {"n09428293": [Image.new("RGB", (64, 64), (0, 0, 255))]}


def test_the_box_is_where_the_object_is(scripts: SimpleNamespace) -> None:
    cutout = _cutout(scripts.compose, scripts.captions)
    for index in range(40):
        photo, place = scripts.compose.composite(index, [cutout], _scenery())
        left, top, right, bottom = photo.box
        pixels = np.asarray(photo.image)
        assert (pixels[top : bottom + 1, left : right + 1] == (255, 0, 0)).all()
        assert photo.subject.name == "teapot"
        if place == "on the beach":
            outside = np.ones((64, 64), bool)
            outside[top : bottom + 1, left : right + 1] = False
            assert (pixels[outside] == (0, 0, 255)).all()


def test_a_number_always_gives_the_same_picture(scripts: SimpleNamespace) -> None:
    cutout = _cutout(scripts.compose, scripts.captions)
    made = [scripts.compose.composite(index, [cutout], _scenery()) for index in (3, 4, 3)]
    first, other, again = (np.asarray(photo.image) for photo, _ in made)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_places_are_scenes_and_coloured_grounds(scripts: SimpleNamespace) -> None:
    cutout = _cutout(scripts.compose, scripts.captions)
    places = {scripts.compose.composite(i, [cutout], _scenery())[1] for i in range(400)}
    assert {"on the beach", "on a beach", "on a blue background"} < places
    assert "on an orange background" in places
    plain = {place for place in places if place.endswith(" background")}
    assert len(plain) == len(scripts.compose.GROUNDS)


def test_captions_always_say_the_place_and_never_the_side(scripts: SimpleNamespace) -> None:
    subject = scripts.captions.Subject("teapot")
    pixels = np.full((64, 64, 3), 90, np.uint8)
    left = (0, 20, 12, 40)
    for index in range(100):
        for caption in scripts.captions.captions_of(subject, pixels, left, index, "on the beach"):
            assert caption.endswith("teapot on the beach")


def test_a_plain_ground_has_its_colour(scripts: SimpleNamespace) -> None:
    ground = scripts.compose.plain_ground((200, 40, 40), (16, 16), random.Random(0))
    red, green, blue = np.asarray(ground, np.int16).reshape(-1, 3).mean(axis=0)
    assert red > 120
    assert max(green, blue) < 70


def test_masks_are_kept_where_they_agree_with_the_box(scripts: SimpleNamespace) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 20:50] = 255
    photo = SimpleNamespace(box=(20, 10, 49, 39))
    assert scripts.cutouts.usable(mask, photo)
    assert not scripts.cutouts.usable(mask, SimpleNamespace(box=(0, 40, 30, 63)))
    assert not scripts.cutouts.usable(np.zeros_like(mask), photo)
    unsure = np.where(mask > 0, 128, 0).astype(np.uint8)
    assert not scripts.cutouts.usable(unsure, photo)


def test_overlap_counts_both_ends(scripts: SimpleNamespace) -> None:
    assert scripts.boxes.overlap((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert scripts.boxes.overlap((0, 0, 9, 9), (5, 0, 14, 9)) == 50 / 150
    assert scripts.boxes.overlap((0, 0, 9, 9), (10, 0, 14, 9)) == 0


def test_a_class_file_names_the_classes_to_keep(scripts: SimpleNamespace, tmp_path: Path) -> None:
    listed = tmp_path / "classes.txt"
    listed.write_text("# a remark\nn02123045 tabby\nn02123394 Persian cat\n")
    assert scripts.packs.class_filter(listed) == {"n02123045", "n02123394"}
    assert scripts.packs.class_filter(None) is None
    listed.write_text("tabby\n")
    with pytest.raises(Exception, match="names no class"):
        scripts.packs.class_filter(listed)
