"""Skies and what rises into them: clouds, ridges, a sunset, space."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image

from stencils import discs, leaves, polygon, press, scattered, stamp
from texture import (
    Colour,
    Field,
    across,
    as_mask,
    below,
    coloured,
    contour,
    down,
    mixed,
    noise,
    receding,
    varied,
)

_BLUES: Final[tuple[tuple[Colour, Colour], ...]] = (
    ((86, 156, 226), (208, 230, 244)),
    ((58, 128, 214), (180, 216, 240)),
    ((120, 178, 226), (226, 236, 240)),
)
_DUSKS: Final[tuple[tuple[Colour, Colour, Colour, Colour], ...]] = (
    ((64, 44, 112), (196, 84, 116), (252, 146, 70), (255, 214, 120)),
    ((44, 56, 120), (150, 80, 140), (240, 110, 90), (255, 190, 100)),
    ((120, 46, 84), (228, 92, 62), (255, 160, 56), (255, 226, 130)),
)
_NEBULAE: Final[tuple[Colour, ...]] = (
    (120, 40, 160),
    (30, 80, 170),
    (170, 50, 110),
    (20, 120, 130),
)
_PLANETS: Final[tuple[Colour, ...]] = (
    (206, 140, 84),
    (196, 84, 60),
    (92, 146, 206),
    (180, 170, 150),
    (120, 180, 150),
)


def sky(
    rng: np.random.Generator, side: int, stops: Sequence[Colour], horizon: float, clouds: float
) -> Image.Image:
    """Paint a sky that pales towards the horizon (a row), with clouds from 0 (none) to 1."""
    rows = min(side, max(2, round(horizon) + 2))
    ramp = coloured(down(side) * np.float32(side / rows), stops)
    picture = ramp.resize((side, side), Image.Resampling.NEAREST)
    if clouds > 0:
        puffs = noise(rng, (rows, side), (3, 2), 5, 0.6)
        white = mixed(stops[-1], (255, 255, 255), 0.75)
        press(picture, white, (0, 0, side, rows), as_mask((puffs + np.float32(clouds - 0.55)) * 3))
    return picture


def blue_sky(rng: np.random.Generator, side: int, horizon: float) -> Image.Image:
    """Paint the sky of a fine day."""
    top, pale = _BLUES[rng.integers(len(_BLUES))]
    stops = (varied(rng, top, 0.06), pale, pale)
    return sky(rng, side, stops, horizon, rng.uniform(0.15, 0.65))


def rows_below(heights: Field, side: int, soft: float = 1.2) -> int:
    """Count the rows that ground below a line may cover, of a picture's `side`."""
    return side - min(max(0, int(heights.min() - soft)), side - 1)


def land(
    picture: Image.Image, heights: Field, ground: Image.Image | Colour, soft: float = 1.2
) -> None:
    """Cover what lies below a line (a row for each column) with ground, with a soft edge.

    A ground that is a picture lies at the bottom; it has at least `rows_below` rows.
    """
    rows = rows_below(heights, picture.height, soft)
    top = picture.height - rows
    if isinstance(ground, Image.Image):
        ground = ground.crop((0, ground.height - rows, ground.width, ground.height))
    else:
        ground = Image.new("RGB", (picture.width, rows), ground)
    picture.paste(ground, (0, top), below(heights - top, rows, soft))


def ridge(
    rng: np.random.Generator, side: int, level: float, swing: float, cells: int, octaves: int = 3
) -> Field:
    """Draw the top of a hill or a wood: one row for each column, around `level`."""
    return np.float32(level) + contour(rng, side, cells, octaves) * np.float32(swing)


def sunset(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a low sun in a burning sky, over water or dark hills."""
    unit = side / 256
    horizon = side * rng.uniform(0.52, 0.66)
    stops = _DUSKS[rng.integers(len(_DUSKS))]
    picture = sky(rng, side, stops, horizon, 0)
    streaks = noise(rng, (side, side), (14, 3), 4, 0.6)
    haze = as_mask(streaks * 1.6 - 0.35)
    press(picture, mixed(stops[0], stops[1], 0.4), (0, 0, side, side), haze)
    x, radius = rng.uniform(0.15, 0.85) * side, rng.uniform(15, 27) * unit
    y = horizon - radius * rng.uniform(-0.2, 1.4)
    for spread in (2.6, 2.1, 1.7, 1.35):
        stamp(picture, (255, 224, 140), discs(x, y, radius * spread), strength=36)
    stamp(picture, (255, 244, 190), discs(x, y, radius))
    if rng.random() < 0.55:
        size = side - int(horizon) + 2, side
        waves = receding(noise(rng, (256, 256), (64, 20), 3, 0.7) * 0.5 + 0.5, size, 3)
        path = np.exp(-(((across(side) * side - x) / np.float32(radius * 1.5)) ** 2))
        field = (waves - 0.5) * 0.8 + 0.3 + path * 0.5 * (waves * 1.2 + 0.1) - down(size[0]) * 0.06
        tones = (mixed(stops[0], (0, 0, 20), 0.5), *stops[1:])
        land(picture, np.full(side, horizon, np.float32), coloured(field, tones))
        return picture
    dark = mixed(stops[0], (10, 6, 16), 0.72)
    land(
        picture, ridge(rng, side, horizon - 6 * unit, 22 * unit, 4, 4), mixed(dark, stops[2], 0.28)
    )
    field = noise(rng, (side, side), (50, 30), 3, 0.8) * 0.5 + 0.6 - down(side) * 0.3
    soil = coloured(field, (mixed(dark, (0, 0, 0), 0.6), mixed(dark, stops[2], 0.2)))
    land(picture, ridge(rng, side, horizon + 16 * unit, 12 * unit, 3, 5), soil)
    return picture


def space(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw stars, a nebula, and planets with their shadows and at times a ring."""
    unit = side / 256
    hue = _NEBULAE[rng.integers(len(_NEBULAE))]
    cloud = noise(rng, (side, side), (2, 2), 6, 0.6)
    veil = noise(rng, (side, side), (3, 3), 3)
    field = np.clip(cloud + 0.15, 0, 1) * np.clip(veil + 0.6, 0, 1) * 1.1
    night: Colour = (5, 5, 16)
    glows = (mixed(night, hue, 0.35), mixed(night, hue, 0.75), mixed(hue, (255, 200, 220), 0.6))
    picture = coloured(field, (night, *glows))
    whole = (0.0, 0.0, float(side), float(side))
    for radius, count, shine in ((0.55, 120, 190), (1.0, 55, 255)):
        x, y, value = scattered(rng, count, whole)
        stars = discs(x, y, radius * (0.7 + 0.9 * value**3) * unit)
        stamp(picture, varied(rng, (250, 246, 240), 0.05), stars, strength=shine)
    x, y, value = scattered(rng, 16, whole)
    turns = np.tile(np.arange(4) * np.pi / 2, 4)
    rays = leaves(
        np.repeat(x[:4], 4), np.repeat(y[:4], 4), np.repeat(3 + 6 * value[:4], 4) * unit, turns, 0.1
    )
    stamp(picture, (255, 255, 255), *rays, strength=230)
    for _ in range(int(rng.integers(1, 3))):
        _planet(rng, picture, rng.uniform(14, 40) * unit)
    return picture


def _planet(rng: np.random.Generator, picture: Image.Image, radius: float) -> None:
    side = picture.width
    x, y = rng.uniform(0.05, 0.95) * side, rng.uniform(0.05, 0.6) * side
    body = _PLANETS[rng.integers(len(_PLANETS))]
    columns = across(side) * np.float32(side)
    sunward = (columns - x) * np.float32(-0.6) + (columns[:, None] - y) * np.float32(-0.5)
    bands = noise(rng, (side, side), (24, 3), 3)
    light = sunward * np.float32(0.5 / radius) + 0.5 + bands * 0.16
    stamp(picture, mixed(body, (255, 255, 255), 0.3), discs(x, y, radius * 1.1), strength=45)
    tones = (mixed(body, (0, 0, 0), 0.88), body, mixed(body, (255, 250, 230), 0.6))
    stamp(picture, coloured(light, tones), discs(x, y, radius))
    if rng.random() < 0.4:
        angles = np.linspace(0, np.pi, 24)
        arc = np.stack((np.cos(angles), 0.3 * np.sin(angles)), axis=-1)
        ring = np.concatenate((arc * 1.9, arc[::-1] * 1.35)) * radius + (x, y)
        stamp(picture, (222, 204, 170), polygon(ring.tolist()), strength=230)
