"""Sprites from pictures with transparency: box, size, edge, hue."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.errors import UserError

LONGEST: Final = 224  # pixels of a sprite's longest side: it is set into scenes of 256
VISIBLE: Final = 16  # alpha from which a pixel belongs to the box: less is a shadow or noise

# Judged on the pixels that are nearly opaque.
COLOURED: Final = 0.25  # saturation from which a pixel has a hue
LIT: Final = 0.15  # the same of its value: black has none
SHARE: Final = 0.45  # of the object that must have a hue
UNANIMITY: Final = 0.93  # length of the mean hue, a unit vector: 1 is one hue, 0 is every hue


def shaped(image: Image.Image) -> Image.Image:
    """Crop an RGBA picture to what is visible and make it small enough for a sprite."""
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha >= VISIBLE)).getbbox()
    if box is None:
        raise UserError("A picture is wholly transparent; choose another one.")
    cropped = image.crop(box)
    scale = LONGEST / max(cropped.size)
    if scale >= 1:
        return cropped
    width, height = (max(1, round(side * scale)) for side in cropped.size)
    return cropped.resize((width, height), Image.Resampling.LANCZOS)


def colourable(image: Image.Image) -> bool:
    """Tell whether an RGBA picture is essentially of one hue."""
    pixels = np.asarray(image.convert("RGB").convert("HSV"), np.float64) / 255
    seen = np.asarray(image.getchannel("A")) >= 200
    hue, saturation, value = (pixels[..., channel][seen] for channel in range(3))
    coloured = (saturation >= COLOURED) & (value >= LIT)
    if not seen.any() or coloured.mean() < SHARE:
        return False
    # Weighted by how strong the colour is: the hue of what is nearly grey is noise.
    weights = (saturation * value)[coloured]
    directions = np.exp(2j * np.pi * hue[coloured])
    return bool(abs((weights * directions).sum()) / weights.sum() >= UNANIMITY)


def bled(colours: NDArray[np.uint8], solid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Carry the colours of the `solid` pixels outwards over all others, H W 3.

    A cut-out's edge is mixed with what was behind it, which shows as a halo in another scene.
    """
    filled = np.where(solid[..., None], colours, 0).astype(np.float64)
    known = solid.astype(np.float64)
    while not known.all():
        sums, counts = _ring(filled * (known > 0)[..., None]), _ring(known)
        new = (known == 0) & (counts > 0)
        if not new.any():
            break
        filled[new] = sums[new] / counts[new][:, None]
        known[new] = 1
    return filled.round().astype(np.uint8)


def _ring(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over each pixel's 3x3 neighbourhood."""
    padded = np.pad(values, ((1, 1), (1, 1)) + ((0, 0),) * (values.ndim - 2))
    height, width = values.shape[:2]
    total = np.zeros_like(values)
    for row in range(3):
        for column in range(3):
            total += padded[row : row + height, column : column + width]
    return total
