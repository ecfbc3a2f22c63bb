"""Cut things out of openly licensed photos, where that succeeds cleanly."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from cascade.data.saliency import U2NetP
from concepts import Thing
from photographs import Photograph
from shaping import bled, colourable, shaped
from sprites import Sprite

KEPT: Final = 14  # cut-outs of a thing
TRIED: Final = 30  # photos of a thing that are looked at

# What tells a clean mask: shares of the picture, of the mask, of the border and of unsure pixels.
_AREA: Final = (0.06, 0.75)
_LARGEST: Final = 0.93
_BORDER: Final = 0.08
_UNSURE: Final = 0.06
_STEP: Final = (0.35, 0.8)  # of the mask: from here to there the edge becomes opaque
_SOLID: Final = 0.97  # from here on a pixel is the thing's own colour


def cut_out(thing: Thing, photographs: Sequence[Photograph], network: U2NetP) -> Iterator[Sprite]:
    """Yield the photo sprites of a thing: of the photos whose caption ends in one of its names."""
    names = "|".join(map(re.escape, thing.photos))
    of_thing = [p for p in photographs if thing.photos and re.search(rf"\b({names})$", p.caption)]
    kept = 0
    for photograph in of_thing[:TRIED]:
        mask = np.asarray(network(photograph.image), np.float32) / 255
        if kept < KEPT and is_clean(mask):
            kept += 1
            image = shaped(_transparent(photograph.image, mask))
            yield Sprite(thing.name, "photo", image, None, colourable(image))


def is_clean(mask: NDArray[np.float32]) -> bool:
    """Tell whether a mask, H W in [0, 1], shows one whole thing inside its picture."""
    inside = mask > 0.5
    labels, count = ndimage.label(inside)
    if not count:
        return False
    largest = np.bincount(labels.ravel())[1:].max() / inside.sum()
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]]).mean()
    unsure = ((mask > 0.2) & (mask < 0.8)).mean()
    return bool(
        _AREA[0] < inside.mean() < _AREA[1]
        and largest > _LARGEST
        and border < _BORDER
        and unsure < _UNSURE
    )


def _transparent(image: Image.Image, mask: NDArray[np.float32]) -> Image.Image:
    low, high = _STEP
    alpha = np.clip((mask - low) / (high - low), 0, 1)
    colours = bled(np.asarray(image), mask > _SOLID)
    return Image.fromarray(np.dstack([colours, (alpha * 255).astype(np.uint8)]), "RGBA")
