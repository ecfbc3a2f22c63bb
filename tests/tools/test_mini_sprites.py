"""The things of the small world: what they are called, how they are read, and what is refused."""

import base64
import hashlib
import importlib
import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cascade.errors import UserError

MODULES = ("concepts", "packages", "shaping", "sprites")
HEAD = {"x": 0.5, "top": 0.1, "width": 0.8, "eyes": 0.4}


@pytest.fixture
def tools(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules beside their neighbours, as `python tools/mini/make_sprites.py` sees them."""
    monkeypatch.syspath_prepend(str(repository / "tools" / "mini"))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name, None)


def _disc(fill: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((16, 8, 47, 55), fill=fill)
    return image


def _rainbow() -> Image.Image:
    hues = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    full = np.full_like(hues, 255)
    return Image.fromarray(np.dstack([hues, full, full]), "HSV").convert("RGBA")


def test_what_was_written_is_read(tools: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("a.webp", "b.webp", "hat.webp"):
        _disc((200, 30, 30)).save(tmp_path / name, lossless=True)
    entries = [
        {"file": "a.webp", "concept": "cat", "style": "3d", "colourable": True, "head": HEAD},
        {"file": "b.webp", "concept": "bus", "style": "photo", "colourable": False, "head": None},
    ]
    index = {
        "concepts": {"cat": ["animal", "pet"], "bus": ["vehicle"]},
        "sprites": entries,
        "accessories": {"top hat": {"flat": "hat.webp"}},
    }
    (tmp_path / tools.sprites.INDEX).write_text(json.dumps(index))
    bus, cat = tools.sprites.read_sprites(tmp_path)
    assert (bus.name, cat.name, cat.nouns) == ("bus", "cat", ("animal", "pet"))
    (sprite,) = cat.sprites
    assert (sprite.style, sprite.colourable, sprite.image.mode) == ("3d", True, "RGBA")
    assert sprite.head == tools.sprites.Head(**HEAD)
    assert bus.sprites[0].head is None
    worn = tools.sprites.read_accessories(tmp_path)
    assert worn["top hat"]["flat"].size == (64, 64)


def test_a_folder_without_an_index_is_refused(tools: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"make the sprites with tools/mini/make_sprites\.py"):
        tools.sprites.read_sprites(tmp_path)


def test_reading_needs_none_of_what_making_needs(repository: Path) -> None:
    source = (repository / "tools" / "mini" / "sprites.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if "import " in line}
    assert imported <= {"PIL", "cascade", "collections", "dataclasses", "json", "pathlib", "typing"}


def test_one_hue_can_be_turned_and_a_rainbow_cannot(tools: SimpleNamespace) -> None:
    colourable = tools.shaping.colourable
    assert colourable(_disc((200, 30, 30)))
    assert colourable(_disc((150, 90, 60)))
    assert not colourable(_disc((128, 128, 128)))
    assert not colourable(_rainbow())
    two = _disc((200, 30, 30))
    ImageDraw.Draw(two).rectangle((16, 28, 47, 55), fill=(30, 60, 200))
    assert not colourable(two)
    # Reds lie on both sides of where the circle of hues begins.
    around = _disc((200, 30, 50))
    ImageDraw.Draw(around).rectangle((16, 28, 47, 55), fill=(200, 50, 30))
    assert colourable(around)


def test_a_sprite_is_its_visible_box_made_small(tools: SimpleNamespace) -> None:
    assert tools.shaping.shaped(_disc((0, 0, 255))).size == (32, 48)
    large = tools.shaping.shaped(_disc((0, 0, 255)).resize((640, 640)))
    assert large.height == tools.shaping.LONGEST
    with pytest.raises(UserError, match="wholly transparent"):
        tools.shaping.shaped(Image.new("RGBA", (8, 8)))


def test_colours_spread_from_what_is_solid(tools: SimpleNamespace) -> None:
    colours = np.full((9, 9, 3), 255, np.uint8)
    colours[3:6, 3:6] = (10, 20, 30)
    solid = np.zeros((9, 9), bool)
    solid[3:6, 3:6] = True
    assert (tools.shaping.bled(colours, solid) == (10, 20, 30)).all()


def test_the_list_of_things_is_consistent(tools: SimpleNamespace) -> None:
    world = tools.concepts.read_world()
    names = {thing.name for thing in world.things}
    nouns = {noun for thing in world.things for noun in thing.nouns}
    assert len(names) == len(world.things) >= 80
    assert not names & nouns
    assert all(thing.emoji or thing.photos for thing in world.things)
    drawn = [emoji for thing in world.things for emoji in thing.emoji]
    assert len(drawn) == len(set(drawn))
    pictured = [photo for thing in world.things for photo in thing.photos]
    assert len(pictured) == len(set(pictured))
    assert set(world.heads) <= set(drawn)
    for styles in world.heads.values():
        assert set(styles) <= set(tools.sprites.DRAWN)
        for head in styles.values():
            assert all(0 <= number <= 1 for number in astuple(head))
            assert head.top < head.eyes


def test_every_source_is_pinned_and_named(tools: SimpleNamespace) -> None:
    packages = tools.packages.read_packages()
    assert set(packages) == set(tools.sprites.DRAWN)
    for package in packages.values():
        algorithm, _, digest = package.integrity.partition("-")
        assert (algorithm, len(base64.b64decode(digest))) == ("sha512", 64)
        assert all(part.isdecimal() for part in package.version.split("."))
    text = tools.packages.SOURCES.read_text(encoding="utf-8")
    sources = tomllib.loads(text)
    for source in (*sources["drawings"].values(), *sources["photos"].values()):
        assert source["licence"] in ("Apache-2.0", "CC0-1.0", "MIT")
        assert source["homepage"].startswith("https://")
        assert source["attribution"]


def test_another_archive_than_the_pinned_one_is_refused(
    tools: SimpleNamespace, tmp_path: Path
) -> None:
    digest = base64.b64encode(hashlib.sha512(b"right").digest()).decode()
    package = tools.packages.Package("@some/thing", "1.0.0", f"sha512-{digest}")
    archive = tmp_path / package.archive
    assert archive.name == "some-thing-1.0.0.tgz"
    archive.write_bytes(b"right")
    tools.packages.check(archive, package)
    archive.write_bytes(b"wrong")
    with pytest.raises(UserError, match=r"is not @some/thing 1\.0\.0 as pinned"):
        tools.packages.fetch({"3d": package}, tmp_path)


def test_a_machine_without_npm_is_told_what_to_install(
    tools: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"install Node\.js"):
        tools.packages.fetch(tools.packages.read_packages(), tmp_path)
