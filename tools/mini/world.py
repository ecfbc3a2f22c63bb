"""A small world that a small network can learn: things with exact names in drawn scenes.

Picture number i is a function of i: a thing in one of four styles, of its own colour or another,
with or without something worn, at some size and place in a scene or on a plain ground. A third of
the combinations of thing, style and scene are never trained on; they measure composition.

Shapes: pictures `S S 3`, S = 256.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from PIL import Image

from captions import ACCESSORIES, HUES, Labels, View, captions, held_out, prompt, scene_names
from dress import dressed, recoloured
from scenes import COLOURS, SCENES, plain
from sprites import Concept, Sprite, Style, read_accessories, read_sprites

SIDE: Final = 256
Split = Literal["training", "held out"]

SCENERY: Final = 0.05  # share of pictures without a thing
PLAIN: Final = 0.3  # share of things on a plain ground
COLOURED: Final = 0.5  # share of things of one hue that are given another
WORN: Final = 0.6  # share of heads with something on
TURNED: Final = 0.3  # share of things that lean
LEAN: Final = 10.0  # degrees at most
SIZES: Final = (0.45, 0.97)  # longest side of a thing, of the picture's
SMALL: Final = 0.56  # below this share it is called small
CLOSE: Final = 0.86  # above this one a close-up
LEFT: Final = 0.38  # a thing whose middle is before this share of the width is on the left
RIGHT: Final = 0.62

_SCENES: Final = {scene.name: scene for scene in SCENES}
_GROUNDS: Final = tuple(f"{colour} background" for colour in COLOURS)


@dataclass(frozen=True)
class Picture:
    """A picture, its captions and what it shows."""

    image: Image.Image
    captions: tuple[str, ...]
    labels: Labels


@dataclass(frozen=True)
class World:
    """The things of the world and what they can wear."""

    concepts: tuple[Concept, ...]
    accessories: Mapping[str, Mapping[Style, Image.Image]]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read what `make_sprites.py` wrote."""
        return cls(read_sprites(folder), read_accessories(folder))

    def picture(self, index: int, split: Split = "training") -> Picture:
        """Compose picture number `index` of a split."""
        rng = np.random.default_rng([index, split == "held out"])
        if split == "training" and rng.random() < SCENERY:
            labels = Labels(str(rng.choice(scene_names())))
            scene = _ground(labels.scene, rng)
            return Picture(scene, captions(labels, View(), None, rng), labels)
        concept, sprite, labels = self._chosen(rng, split)
        thing = dressed(
            recoloured(sprite.image, labels.colour), sprite, labels.accessory, self.accessories, rng
        )
        image, view = _placed(thing, labels.scene, rng)
        return Picture(image, captions(labels, view, concept, rng), labels)

    def prompts(self, split: Split, seed: int = 0) -> Iterator[tuple[str, Labels]]:
        """Yield prompts that say all there is to see, each with its labels, without end."""
        rng = np.random.default_rng([seed, split == "held out"])
        while True:
            labels = self._chosen(rng, split)[-1]
            yield prompt(labels), labels

    def vocabulary(self) -> dict[str, tuple[str, ...]]:
        """Return the values of every attribute, in a fixed order."""
        return {
            "concept": tuple(concept.name for concept in self.concepts),
            "style": tuple(sorted({s.style for c in self.concepts for s in c.sprites})),
            "scene": scene_names(),
            "colour": HUES,
            "accessory": tuple(ACCESSORIES),
        }

    def _chosen(self, rng: np.random.Generator, split: Split) -> tuple[Concept, Sprite, Labels]:
        concept = self.concepts[rng.integers(len(self.concepts))]
        styles = sorted({sprite.style for sprite in concept.sprites})
        style = styles[rng.integers(len(styles))]
        drawings = [sprite for sprite in concept.sprites if sprite.style == style]
        sprite = drawings[rng.integers(len(drawings))]
        labels = Labels(_scene(concept.name, style, split, rng), concept.name, style)
        if sprite.colourable and rng.random() < COLOURED:
            labels = replace(labels, colour=str(rng.choice(HUES)))
        if sprite.head is not None and rng.random() < WORN:
            labels = replace(labels, accessory=str(rng.choice(tuple(ACCESSORIES))))
        return concept, sprite, labels


def _scene(concept: str, style: Style, split: Split, rng: np.random.Generator) -> str:
    """Draw places until one belongs to the split; each split has some of both kinds."""
    while True:
        kind = _GROUNDS if rng.random() < PLAIN else tuple(_SCENES)
        scene = kind[rng.integers(len(kind))]
        if held_out(concept, style, scene) == (split == "held out"):
            return scene


def _ground(scene: str, rng: np.random.Generator) -> Image.Image:
    colour = scene.removesuffix(" background")
    drawn = plain(rng, colour, SIDE) if colour != scene else _SCENES[scene].draw(rng, SIDE)
    return Image.fromarray(drawn)


def _placed(thing: Image.Image, scene: str, rng: np.random.Generator) -> tuple[Image.Image, View]:
    """Set a thing into a scene, at random size, place and side."""
    ground = _ground(scene, rng)
    share = rng.uniform(*SIZES)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < TURNED:
        thing = thing.rotate(rng.uniform(-LEAN, LEAN), Image.Resampling.BICUBIC, expand=True)
        thing = thing.crop(thing.getchannel("A").getbbox())
    factor = share * SIDE / max(thing.size)
    width, height = (max(1, round(edge * factor)) for edge in thing.size)
    # Premultiplied, so that the colour of what cannot be seen does not bleed into the edge.
    thing = thing.convert("RGBa").resize((width, height), Image.Resampling.BICUBIC).convert("RGBA")
    stand = _SCENES[scene].stand if scene in _SCENES else (0.6, 1.0)
    left = int(rng.integers(0, SIDE - width + 1))
    bottom = min(SIDE, max(height, round(rng.uniform(*stand) * SIDE)))
    ground.paste(thing, (left, bottom - height), thing)
    middle = (left + width / 2) / SIDE
    size = "small" if share < SMALL else "close-up" if share > CLOSE else None
    side = "left" if middle < LEFT else "right" if middle > RIGHT else None
    return ground, View(size, side)
