"""Pictures of the small world: functions of their numbers, with captions that are true of them."""

import colorsys
import importlib
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cascade.data.array import CaptionedArray
from cascade.errors import UserError

MODULES = ("captions", "dress", "prepare", "sprites", "world")
HEAD = {"x": 0.5, "top": 0.1, "width": 0.8, "eyes": 0.4}


@pytest.fixture
def tools(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules beside their neighbours, as `python tools/mini/prepare.py` sees them."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(repository / "tools" / "mini"))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in set(sys.modules) - before:
        if (repository / "tools" / "mini" / f"{name}.py").is_file():
            sys.modules.pop(name)


@pytest.fixture
def sprites(tmp_path: Path) -> Path:
    """A cat with a head, of one hue, in three styles; a bus; what can be worn."""
    disc = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(disc).ellipse((2, 2, 61, 61), fill=(200, 120, 30))
    folder = tmp_path / "sprites"
    folder.mkdir()
    disc.save(folder / "disc.webp", lossless=True)
    styles = ("3d", "flat", "cartoon")
    cats = [
        {"file": "disc.webp", "concept": "cat", "style": s, "colourable": True, "head": HEAD}
        for s in styles
    ]
    bus = {"file": "disc.webp", "concept": "bus", "style": "photo", "colourable": False}
    worn = {name: dict.fromkeys(styles, "disc.webp") for name in ("top hat", "crown", "sunglasses")}
    index = {
        "concepts": {"cat": ["animal"], "bus": ["vehicle"]},
        "sprites": [*cats, {**bus, "head": None}],
        "accessories": worn,
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def world(tools: SimpleNamespace, sprites: Path) -> object:
    return tools.world.World.open(sprites)


def test_a_picture_is_a_function_of_its_number(tools: SimpleNamespace, sprites: Path) -> None:
    one, other = (tools.world.World.open(sprites) for _ in range(2))
    for number in range(6):
        first, again = one.picture(number), other.picture(number)
        assert first.image.tobytes() == again.image.tobytes()
        assert (first.captions, first.labels) == (again.captions, again.labels)
        assert first.image.size == (256, 256)


def test_no_combination_is_in_both_splits(tools: SimpleNamespace, world: SimpleNamespace) -> None:
    splits = {
        split: {
            (labels.concept, labels.style, labels.scene)
            for _, labels in islice(world.prompts(split), 400)
        }
        for split in ("training", "held out")
    }
    assert not splits["training"] & splits["held out"]
    shown = (world.picture(number, "held out").labels for number in range(20))
    assert all(tools.captions.held_out(one.concept, one.style, one.scene) for one in shown)


def test_captions_say_what_is_there(tools: SimpleNamespace, world: SimpleNamespace) -> None:
    worn = 0
    for number in range(120):
        picture = world.picture(number)
        labels, said = picture.labels, picture.captions
        assert said[0] == tools.captions.prompt(labels)
        for caption in said:
            assert labels.colour is None or f"{labels.colour} " in caption
            assert (tools.captions.ACCESSORIES.get(labels.accessory, "wearing") in caption) is (
                labels.accessory is not None
            )
        worn += labels.accessory is not None
    assert worn  # else nothing was tested of it


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("dog", "a dog"),
        ("orange", "an orange"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("jeans", "jeans"),
        ("bus", "a bus"),
        ("dress", "a dress"),
        ("food", "food"),
        ("green glasses", "green glasses"),
        ("owl wearing sunglasses", "an owl wearing sunglasses"),
    ],
)
def test_articles(tools: SimpleNamespace, phrase: str, said: str) -> None:
    assert tools.captions.with_article(phrase) == said


@pytest.mark.parametrize(("colour", "hue"), [("red", 2), ("green", 125), ("blue", 218)])
def test_a_thing_takes_the_hue_that_it_is_given(
    tools: SimpleNamespace, colour: str, hue: int
) -> None:
    thing = Image.new("RGBA", (4, 4), (200, 120, 30, 255))
    turned = tools.dress.recoloured(thing, colour).getpixel((1, 1))
    # Hues of Pillow's HSV are steps of 1.4 degrees, and the way back rounds once more.
    assert 360 * colorsys.rgb_to_hsv(*turned[:3])[0] == pytest.approx(hue, abs=4)


def test_a_dataset_is_what_training_reads(
    tools: SimpleNamespace, sprites: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    tools.prepare.write_dataset(tools.prepare.Job("base", 16, 6, "training"), sprites, folder, 1)
    data = CaptionedArray.open(folder)
    assert data.images.shape == (6, 3, 16, 16)
    labels = np.load(folder / "labels.npy")
    vocabulary = json.loads((folder / "dataset.json").read_text())["vocabulary"]
    world = tools.world.World.open(sprites)
    for number in range(6):
        picture = world.picture(number)
        assert data.captions(number) == picture.captions
        assert vocabulary["scene"][labels[number, 2]] == picture.labels.scene


def test_photos_follow_the_composed_pictures(
    tools: SimpleNamespace, sprites: Path, tmp_path: Path
) -> None:
    photo = tools.prepare.Photograph(Image.new("RGB", (20, 30), "red"), "red trousers", "", 0)
    job = tools.prepare.Job("sr", 16, 2, "training", turns=3)
    tools.prepare.write_dataset(job, sprites, tmp_path / "sr", 1, (photo,))
    data = CaptionedArray.open(tmp_path / "sr")
    assert data.texts[2:] == (("red trousers",),) * 3
    assert (data.images[2:] == np.array([255, 0, 0])[:, None, None]).all()
    assert (np.load(tmp_path / "sr" / "labels.npy")[2:] == -1).all()


def test_a_missing_pack_of_photos_is_told_before_anything_is_composed(
    tools: SimpleNamespace, sprites: Path, tmp_path: Path
) -> None:
    output = tmp_path / "sets"
    with pytest.raises(UserError, match=r"no .*sr256_photos\.bin; give the folder"):
        tools.prepare.main(output, sprites, photos=tmp_path)
    assert not output.exists()
