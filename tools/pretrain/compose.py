"""Objects set into other scenes: what "a dog on the beach" or "on a blue background" means.

Photos of single classes never show a teapot in the mountains; a network trained on them alone
cannot be asked for one. Here an object's cut-out is set, at another size and place, on a landscape
photo or on a plain coloured ground. Everything about composite number i is a function of i.

Shapes: pixels `H W 3` uint8, masks `H W` uint8.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from boxes import Box, mask_box
from captions import Subject, with_article
from packs import Photo, TinyPack, existing

SCENES: Final = {
    "n09193705": ("in the mountains", "with a mountain in the background"),
    "n09246464": ("on a cliff",),
    "n09332890": ("by a lake", "at the lake"),
    "n09428293": ("on the beach", "on a beach"),
}
# Grounds of one colour, RGB; a light falls from above.
GROUNDS: Final = {
    "red": (196, 42, 40),
    "orange": (232, 130, 36),
    "yellow": (236, 206, 60),
    "green": (66, 150, 70),
    "blue": (52, 98, 190),
    "purple": (120, 62, 160),
    "pink": (236, 150, 186),
    "white": (240, 240, 238),
    "black": (18, 18, 20),
    "grey": (128, 128, 128),
}
PLAIN: Final = 0.4  # share of composites on a plain ground
SCALES: Final = (0.65, 1.0)  # of the object's size in its photo


@dataclass(frozen=True)
class Cutout:
    """An object: its photo cropped to it (RGB), its mask (L) and what it is called."""

    image: Image.Image
    mask: Image.Image
    subject: Subject


def read_cutouts(pack: TinyPack, masks: Path) -> list[Cutout]:
    """Cut the objects that `cutouts.py` marked out of their photos."""
    with np.load(existing(masks)) as file:
        pairs = list(zip(file["index"], file["masks"], strict=True))
    return [_cut(pack[int(index)], mask) for index, mask in pairs]


def composite(
    index: int, cutouts: Sequence[Cutout], scenery: Mapping[str, Sequence[Image.Image]]
) -> tuple[Photo, str]:
    """Make composite number `index`: the picture with its object's box, and where the object is.

    Args:
        index: seeds every choice.
        cutouts: objects to choose from.
        scenery: landscape photos by WordNet id; all of one square size, which the result has.
    """
    random_ = random.Random(f"composite {index}")
    cutout = random_.choice(cutouts)
    if random_.random() < PLAIN:
        colour = random_.choice(sorted(GROUNDS))
        size = next(iter(scenery.values()))[0].size
        ground = plain_ground(GROUNDS[colour], size, random_)
        place = f"on {with_article([colour, 'background'])}"
    else:
        wnid = random_.choice(sorted(scenery))
        ground, place = random_.choice(scenery[wnid]).copy(), random_.choice(SCENES[wnid])
    box = _paste(ground, cutout, random_)
    return Photo(ground, cutout.subject, box), place


def plain_ground(
    colour: tuple[int, int, int], size: tuple[int, int], random_: random.Random
) -> Image.Image:
    """A ground of one colour, a little lighter at the top and never quite the same."""
    width, height = size
    shade = np.linspace(random_.uniform(1.0, 1.15), random_.uniform(0.8, 1.0), height)
    tint = np.array([channel * random_.uniform(0.92, 1.08) for channel in colour])
    rows = np.clip(shade[:, None] * tint, 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(rows[:, None], width, axis=1))


def _cut(photo: Photo, mask: np.ndarray) -> Cutout:
    left, top, right, bottom = mask_box(mask > 127)
    box = (left, top, right + 1, bottom + 1)
    # A pixel less around the edge keeps the old background's colour out of the new scene.
    inner = Image.fromarray(mask).filter(ImageFilter.MinFilter(3))
    return Cutout(photo.image.crop(box), inner.crop(box), photo.subject)


def _paste(ground: Image.Image, cutout: Cutout, random_: random.Random) -> Box:
    """Set the object into the lower part of the ground; returns its box, ends included."""
    width, height = ground.size
    largest = min(width / cutout.image.width, height / cutout.image.height)
    scale = min(random_.uniform(*SCALES), largest)
    wide, tall = (max(1, round(edge * scale)) for edge in cutout.image.size)
    size = wide, tall
    image = cutout.image.resize(size, Image.Resampling.BICUBIC)
    mask = cutout.mask.resize(size, Image.Resampling.BICUBIC)
    if random_.random() < 0.5:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    left = random_.randint(0, width - wide)
    top = round((height - tall) * random_.uniform(0.5, 1.0))
    ground.paste(image, (left, top), mask)
    return left, top, left + wide - 1, top + tall - 1
