"""Things cut out and pressed on a picture with smooth edges: discs, leaves, trees, clouds.

A polygon is a list of (x, y) in pixels, y downwards.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw
from texture import Colour, Field, as_mask, below, coloured, contour, down, mixed, noise

Polygon = list[tuple[float, float]]

_FINE: Final = 3  # a stencil is drawn this many times as large, for its edges


def stamp(
    picture: Image.Image,
    polygons: Sequence[Polygon],
    fill: Colour | Image.Image,
    strength: int = 255,
) -> None:
    """Press polygons on a picture, in a colour or showing another picture of the same size."""
    points = np.array([point for polygon in polygons for point in polygon], np.float32)
    if not len(points):
        return
    left, top = np.maximum(np.floor(points.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(points.max(axis=0)) + 1, picture.size).astype(int)
    if left >= right or top >= bottom:
        return
    large = Image.new("L", (int(right - left) * _FINE, int(bottom - top) * _FINE))
    pen = ImageDraw.Draw(large)
    for polygon in polygons:
        pen.polygon([((x - left) * _FINE, (y - top) * _FINE) for x, y in polygon], fill=strength)
    mask, box = large.reduce(_FINE), (int(left), int(top), int(right), int(bottom))
    picture.paste(fill.crop(box) if isinstance(fill, Image.Image) else fill, box, mask)


def disc(x: float, y: float, radius: float, flat: float = 1.0) -> Polygon:
    """Outline a disc, `flat` times as high as wide."""
    angles = np.linspace(0, 2 * np.pi, max(8, min(48, int(radius * 2) + 8)), endpoint=False)
    return [
        (x + radius * c, y + radius * flat * s)
        for c, s in zip(np.cos(angles), np.sin(angles), strict=True)
    ]


def box(left: float, top: float, right: float, bottom: float) -> Polygon:
    """Outline an upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def leaf(
    x: float, y: float, length: float, angle: float, slim: float, bend: float = 0.0
) -> tuple[Polygon, Polygon]:
    """Outline both halves of a leaf that starts at (x, y); `bend` lets its tip hang, in radians."""
    along = np.linspace(0, 1, 7)
    turned = angle + bend * along
    step = np.diff(along, prepend=0) * length
    spine_x, spine_y = x + np.cumsum(np.cos(turned) * step), y + np.cumsum(np.sin(turned) * step)
    wide = length * slim * np.sin(np.pi * along**0.8)
    spine = list(zip(spine_x.tolist(), spine_y.tolist(), strict=True))
    halves = []
    for sign in (-1, 1):
        edge_x, edge_y = (
            spine_x - sign * np.sin(turned) * wide,
            spine_y + sign * np.cos(turned) * wide,
        )
        halves.append(spine + list(zip(edge_x[::-1].tolist(), edge_y[::-1].tolist(), strict=True)))
    return halves[0], halves[1]


def fir(x: float, foot: float, height: float, tiers: int = 5) -> Polygon:
    """Outline a fir of some tiers."""
    half = height * 0.26
    right: Polygon = [(x, foot - height)]
    for tier in range(1, tiers + 1):
        y = foot - height * (1 - tier / tiers * 0.94)
        wide = half * tier / tiers
        right += [(x + wide, y), (x + wide * 0.55, y - height * 0.02)]
    left = [(2 * x - px, py) for px, py in reversed(right[1:])]
    return [*right, (x + half * 0.12, foot), (x - half * 0.12, foot), *left]


def blades(
    rng: np.random.Generator, count: int, area: tuple[float, float, float, float], length: float
) -> list[Polygon]:
    """Outline blades of grass that stand in an area (left, top, right, bottom), the nearer the longer."""
    left, top, right, bottom = area
    made = []
    for x, near, lean, tall in rng.random((count, 4)).tolist():
        y = top + (bottom - top) * near
        high = length * (0.4 + 0.6 * near) * (0.6 + 0.8 * tall)
        wide, tip = high * 0.06 + 0.4, (lean - 0.5) * high
        x = left + (right - left) * x
        made.append([(x - wide, y), (x + tip, y - high), (x + wide, y)])
    return made


def sky(
    rng: np.random.Generator,
    side: int,
    stops: Sequence[Colour],
    horizon: float,
    clouds: float = 0.5,
) -> Image.Image:
    """Paint a sky that pales towards the horizon (a row), with `clouds` of it covered, in 0..1."""
    rows = max(2, round(horizon) + 2)
    picture = coloured(np.broadcast_to((down(side) * np.float32(side / rows)), (side, side)), stops)
    if clouds > 0:
        white = mixed(stops[-1], (255, 255, 255), 0.75)
        puffs = noise(rng, (rows, side), (3, 2), 5, 0.6)
        light = as_mask((puffs + np.float32(clouds - 0.55)) * 3)
        picture.paste(white, (0, 0, side, rows), light)
    return picture


def ridge(
    rng: np.random.Generator, side: int, level: float, swing: float, cells: int, octaves: int = 3
) -> Field:
    """Draw the top of a hill or a wood: one row for each column, around `level`."""
    return np.float32(level) + contour(rng, side, cells, octaves) * np.float32(swing)


def land(
    picture: Image.Image, heights: Field, ground: Image.Image | Colour, soft: float = 1.2
) -> None:
    """Cover what lies below a ridge with ground."""
    mask = below(heights, picture.height, soft)
    picture.paste(ground, (0, 0, *picture.size), mask)


def scattered(
    rng: np.random.Generator, count: int, area: tuple[float, float, float, float]
) -> Iterable[tuple[float, float, float]]:
    """Draw places in an area and a value of 0..1 with each, the far (upper) ones first."""
    left, top, right, bottom = area
    places = rng.random((count, 3))
    places = places[np.argsort(places[:, 1])]
    for x, y, value in places.tolist():
        yield left + (right - left) * x, top + (bottom - top) * y, value
