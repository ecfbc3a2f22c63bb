"""The things of the world, as `make_sprites.py` wrote them: drawings and cut-outs with names.

A folder of sprites holds one picture a sprite and `index.json`. Reading needs only numpy and
Pillow, so that the world can be built where the drawings' packages are not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from PIL import Image

from cascade.errors import UserError

Style: TypeAlias = Literal["3d", "flat", "cartoon", "photo"]
DRAWN: Final[tuple[Style, ...]] = ("3d", "flat", "cartoon")
INDEX: Final = "index.json"


@dataclass(frozen=True)
class Head:
    """Positions of hats and glasses, in fractions of the sprite's box from its top left."""

    x: float  # the head's centre
    top: float  # its upper edge, where a hat sits
    width: float
    eyes: float  # their height


@dataclass(frozen=True)
class Sprite:
    """One picture of a concept, cropped to what is not transparent."""

    concept: str
    style: Style
    image: Image.Image  # RGBA, not premultiplied
    head: Head | None
    colourable: bool  # of one hue, so that turning it gives "a purple backpack"


@dataclass(frozen=True)
class Concept:
    """A kind of thing with all its sprites."""

    name: str
    nouns: tuple[str, ...]  # broader words that are also true of it
    sprites: tuple[Sprite, ...]


def read_sprites(folder: Path) -> tuple[Concept, ...]:
    """Read all concepts with their sprites, sorted by name."""
    index = _read_index(folder)
    members: dict[str, list[Sprite]] = {name: [] for name in index["concepts"]}
    for entry in index["sprites"]:
        sprite = Sprite(
            entry["concept"],
            entry["style"],
            _read_image(folder / entry["file"]),
            Head(**entry["head"]) if entry["head"] else None,
            entry["colourable"],
        )
        members[sprite.concept].append(sprite)
    return tuple(
        Concept(name, tuple(index["concepts"][name]), tuple(members[name]))
        for name in sorted(members)
    )


def read_accessories(folder: Path) -> Mapping[str, Mapping[Style, Image.Image]]:
    """Read what can be set on heads, RGBA, by name and drawn style."""
    return {
        name: {style: _read_image(folder / file) for style, file in files.items()}
        for name, files in _read_index(folder)["accessories"].items()
    }


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"There is no {path}; make the sprites with tools/mini/make_sprites.py.")
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return index


def _read_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGBA")
