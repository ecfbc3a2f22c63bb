"""The part of a picture that a row shows, decoded and resized no more than it takes.

Shapes: `S S` the stage's size, `s s` of its low resolution; pixels are uint8, H W C.
"""

import math
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from cascade.config.stage import ResizeKernel, StageConfig
from cascade.data.batch import Offset, crop_sides

REDUCED: Final = 2
"""A JPEG is decoded at no less than so many times the side it is resized to: its own reduction is
a box filter's, of which the antialiased one then leaves next to nothing."""

_REACH: Final = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""How far Pillow's kernels reach, in pixels of the result."""


class Window(NamedTuple):
    """A part of a picture, pixels of the whole file: left, top, right, lower."""

    left: float
    top: float
    right: float
    lower: float

    @property
    def size(self) -> tuple[float, float]:
        """Its width and height."""
        return self.right - self.left, self.lower - self.top


def cut(
    stage: StageConfig,
    picture: Image.Image,
    scale: float,
    window: Window,
    size: tuple[int, int],
    offset: Offset,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Resize a window to a stage's picture, and cut its crop out of it and its twin.

    Pixels are those of the whole picture, to the rounding of the window's edges: only what is
    outside of the crop is not computed.

    Args:
        picture: as decoded.
        scale: of its sides to the file's.
        window: that becomes the whole picture.
        size: width and height of that.
        offset: of the crop, in low-resolution pixels.

    Returns:
        The crop, and its low-resolution twin or None for a base stage.
    """
    edges = Window(*(float(edge * scale) for edge in window))
    if stage.low_res is None:
        return np.asarray(_resized(picture, edges, size, stage.resize)), None
    side, whole = crop_sides(stage)[1], stage.low_res.size
    factor = stage.size // whole
    reach = math.ceil(_REACH[stage.resize])
    first = [max(0, start - reach) for start in offset]
    last = [min(whole, start + side + reach) for start in offset]
    # The crop's surroundings, as far as its twin's pixels reach.
    wide, high = (edges.right - edges.left) / whole, (edges.lower - edges.top) / whole
    around = Window(
        edges.left + first[1] * wide,
        edges.top + first[0] * high,
        edges.left + last[1] * wide,
        edges.top + last[0] * high,
    )
    small = last[1] - first[1], last[0] - first[0]
    large = small[0] * factor, small[1] * factor
    pixels = _resized(picture, around, large, stage.resize)
    twin = _resized(pixels, Window(0.0, 0.0, *map(float, large)), small, stage.resize)
    top, left = (start - begin for start, begin in zip(offset, first, strict=True))
    return (
        np.asarray(pixels)[
            top * factor : (top + side) * factor, left * factor : (left + side) * factor
        ],
        np.asarray(twin)[top : top + side, left : left + side],
    )


def enough(stage_side: int, window: Window, size: tuple[int, int]) -> int:
    """Return the shorter side, of a picture of `size`, at which its window has enough pixels."""
    return math.ceil(REDUCED * stage_side * min(size) / min(window.size))


def _resized(
    picture: Image.Image, window: Window, size: tuple[int, int], kernel: ResizeKernel
) -> Image.Image:
    if window == (0, 0, *picture.size) and size == picture.size:
        return picture
    if size == window.size and window.left.is_integer() and window.top.is_integer():
        return picture.crop(window)
    # Without a reducing gap: Pillow would else shrink with a box filter first.
    return picture.resize(size, Image.Resampling[kernel.upper()], box=window, reducing_gap=None)
