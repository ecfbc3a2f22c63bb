"""Outlines cut as stencils and pressed on a picture: discs, boxes, leaves, trees.

Outlines are `N K 2` float32: N polygons of K points (x, y) in pixels, y downwards. Coordinates
that are handed in are numbers, or arrays of N of them.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from texture import Colour, Field

Outlines = NDArray[np.float32]  # N K 2
Area = tuple[float, float, float, float]  # left, top, right, bottom

_WIDE: Final = 16384.0  # pixels: stencils over a larger area are cut less finely


def stamp(
    picture: Image.Image, fill: Colour | Image.Image, *stencils: Outlines, strength: int = 255
) -> None:
    """Press stencils on a picture, in a colour or showing another picture of the same size."""
    stencils = tuple(outlines for outlines in stencils if len(outlines))
    if not stencils:
        return
    first = np.min([outlines.min(axis=(0, 1)) for outlines in stencils], axis=0)
    last = np.max([outlines.max(axis=(0, 1)) for outlines in stencils], axis=0)
    left, top = (max(0, int(value)) for value in np.floor(first))
    right, bottom = (
        min(length, int(value) + 1)
        for value, length in zip(np.ceil(last), picture.size, strict=True)
    )
    if left >= right or top >= bottom:
        return
    fine = 3 if (right - left) * (bottom - top) < _WIDE else 2
    cut = Image.new("L", ((right - left) * fine, (bottom - top) * fine))
    pen = ImageDraw.Draw(cut)
    for outlines in stencils:
        placed = (outlines - np.array((left, top), np.float32)) * fine
        for points in placed.reshape(len(outlines), -1).tolist():
            pen.polygon(points, fill=strength)
    press(picture, fill, (left, top, right, bottom), cut.reduce(fine))


def press(
    picture: Image.Image,
    fill: Colour | Image.Image,
    box: tuple[int, int, int, int],
    mask: Image.Image,
) -> None:
    """Fill a part of a picture through a mask of its size."""
    # Pasting a picture of one colour takes half as long as pasting the colour.
    size = box[2] - box[0], box[3] - box[1]
    shown = fill.crop(box) if isinstance(fill, Image.Image) else Image.new("RGB", size, fill)
    picture.paste(shown, box, mask)


def block(picture: Image.Image, fill: Colour | Image.Image, area: Area) -> None:
    """Fill an upright rectangle, to whole pixels."""
    left, top, right, bottom = (round(value) for value in area)
    box = max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)
    if box[0] < box[2] and box[1] < box[3]:
        picture.paste(fill.crop(box) if isinstance(fill, Image.Image) else fill, box)


def polygon(points: Sequence[tuple[float, float]]) -> Outlines:
    """Take one polygon from its points: `1 K 2`."""
    return np.array([points], np.float32)


def discs(x: ArrayLike, y: ArrayLike, radius: ArrayLike, flat: float = 1.0) -> Outlines:
    """Outline discs, `flat` times as high as wide."""
    centre_x, centre_y, wide = np.broadcast_arrays(*(np.atleast_1d(v) for v in (x, y, radius)))
    corners = int(np.clip(8 + wide.max(initial=0), 8, 40))
    angles = np.arange(corners) * (2 * np.pi / corners)
    across = centre_x[:, None] + wide[:, None] * np.cos(angles)
    down = centre_y[:, None] + wide[:, None] * (flat * np.sin(angles))
    return np.stack((across, down), axis=-1).astype(np.float32)


def leaves(
    x: ArrayLike,
    y: ArrayLike,
    length: ArrayLike,
    angle: ArrayLike,
    slim: ArrayLike,
    bend: ArrayLike = 0.0,
) -> tuple[Outlines, Outlines]:
    """Outline both halves of leaves that start at (x, y).

    `angle` is their direction (0: to the right), `bend` how far they have turned at the tip, in
    radians, and `slim` the width of a half over the length.
    """
    values = (np.atleast_1d(v)[:, None] for v in (x, y, length, angle, slim, bend))
    start_x, start_y, long, turn, thin, bent = np.broadcast_arrays(*values)
    along = np.linspace(0, 1, 6)
    turned = turn + bent * along
    step = long / 5 * (along > 0)
    spine = np.stack(
        (
            start_x + np.cumsum(np.cos(turned) * step, axis=1),
            start_y + np.cumsum(np.sin(turned) * step, axis=1),
        ),
        axis=-1,
    )
    aside = np.stack((-np.sin(turned), np.cos(turned)), axis=-1)
    aside *= (long * thin * np.sin(np.pi * along**0.8))[..., None]
    first, second = (
        np.concatenate((spine, (spine + edge)[:, ::-1]), axis=1).astype(np.float32)
        for edge in (aside, -aside)
    )
    return first, second


def fronds(
    x: ArrayLike, y: ArrayLike, length: ArrayLike, angle: ArrayLike, bend: ArrayLike
) -> tuple[Outlines, Outlines]:
    """Outline the leaflets on both sides of the leaves of palms or ferns, as `leaves` does."""
    values = (np.atleast_1d(v)[:, None] for v in (x, y, length, angle, bend))
    start_x, start_y, long, turn, bent = np.broadcast_arrays(*values)
    along = np.linspace(0.12, 1, 11)
    turned = turn + bent * along
    rib_x = start_x + np.cumsum(np.cos(turned), axis=1) * long / 11
    rib_y = start_y + np.cumsum(np.sin(turned), axis=1) * long / 11
    reach = long * (0.36 * np.sin(np.pi * (0.12 + 0.8 * along)) + 0.05)
    at = rib_x.ravel(), rib_y.ravel(), reach.ravel()
    bends = np.repeat(bent[:, 0], 11)
    first = leaves(*at, turned.ravel() - 0.8, 0.13, bends)[0]
    second = leaves(*at, turned.ravel() + 0.8, 0.13, bends)[1]
    return first, second


def fir(x: float, foot: float, height: float) -> Outlines:
    """Outline a fir."""
    tiers = 5
    half = height * 0.26
    right = [(x, foot - height)]
    for tier in range(1, tiers + 1):
        y = foot - height * (1 - tier / tiers * 0.94)
        wide = half * tier / tiers
        right += [(x + wide, y), (x + wide * 0.55, y - height * 0.02)]
    left = [(2 * x - px, py) for px, py in reversed(right[1:])]
    return polygon([*right, (x + half * 0.12, foot), (x - half * 0.12, foot), *left])


def blades(rng: np.random.Generator, count: int, area: Area, length: float) -> Outlines:
    """Outline blades of grass that stand in an area, the nearer (lower) the longer."""
    left, top, right, bottom = area
    at, near, lean, tall = rng.random((4, count), np.float32)
    x, y = left + (right - left) * at, top + (bottom - top) * near
    high = length * (0.4 + 0.6 * near) * (0.6 + 0.8 * tall)
    wide = high * 0.06 + 0.4
    tips = (x - wide, y), (x + (lean - 0.5) * high, y - high), (x + wide, y)
    return np.stack([np.stack(point, axis=-1) for point in tips], axis=1).astype(np.float32)


def scattered(rng: np.random.Generator, count: int, area: Area) -> tuple[Field, Field, Field]:
    """Draw places in an area, the far (upper) ones first: their x, their y, a value in 0..1."""
    left, top, right, bottom = area
    x, y, value = rng.random((3, count), np.float32)
    return left + (right - left) * x, np.sort(top + (bottom - top) * y), value
