"""Cold country: snow with firs, and mountains, each drawn from a generator."""

from typing import Final

import numpy as np
from PIL import Image

from skies import blue_sky, land, ridge, rows_below, sky
from stencils import blades, discs, fir, scattered, stamp
from texture import (
    Colour,
    as_mask,
    below,
    coloured,
    contour,
    down,
    grain,
    mixed,
    noise,
    receding,
    varied,
)

_WINTER: Final[tuple[tuple[Colour, Colour], ...]] = (
    ((150, 168, 192), (214, 222, 232)),
    ((176, 190, 208), (232, 236, 242)),
    ((104, 150, 206), (206, 224, 240)),
)
_HAZE: Final[Colour] = (176, 200, 224)


def snow(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw snowy ground, firs with snow on them, and falling flakes."""
    unit = side / 256
    horizon = side * rng.uniform(0.36, 0.52)
    stops = _WINTER[rng.integers(len(_WINTER))]
    picture = sky(rng, side, stops, horizon, rng.uniform(0.2, 0.7))
    hill = ridge(rng, side, horizon - 18 * unit, 14 * unit, 3)
    land(picture, hill, (176, 190, 206), 2)
    teeth = np.abs(contour(rng, side, 60)) * np.float32(16 * unit)
    land(picture, hill + np.float32(10 * unit) - teeth, (112, 132, 148), 2)
    edge = ridge(rng, side, horizon, 8 * unit, 3, 1)
    size = rows_below(edge, side), side
    drifts = receding(noise(rng, (256, 256), (9, 4), 4) * 0.5 + 0.5, size, 3)
    field = drifts * 0.9 + 0.18 + grain(rng, size) * np.float32(0.05)
    ground = coloured(field, ((168, 188, 216), (226, 234, 246), (252, 253, 255)))
    land(picture, edge, ground)
    green = varied(rng, (34, 72, 58), 0.2)
    area = (0.0, horizon, float(side), horizon + side * 0.12)
    for x, y, value in zip(*scattered(rng, int(rng.integers(4, 9)), area), strict=True):
        height = (34 + 60 * float(value)) * unit + (float(y) - horizon) * 1.2
        _snowy_fir(picture, (float(x), float(y) + 4 * unit), height, green)
    x, y, value = scattered(rng, 110, (0, 0, side, side))
    flakes = discs(x, y, (0.6 + 2.2 * value**3) * unit)
    stamp(picture, (255, 255, 255), flakes, strength=225)
    return picture


def _snowy_fir(picture: Image.Image, at: tuple[float, float], height: float, green: Colour) -> None:
    x, foot = at
    stamp(picture, (170, 186, 212), discs(x, foot, height * 0.28, 0.16), strength=170)
    stamp(picture, green, fir(x, foot, height))
    white = fir(x - height * 0.062, foot - height * 0.1, height * 0.9)
    stamp(picture, (236, 242, 250), white, strength=150)
    bare = fir(x + height * 0.02, foot - height * 0.03, height * 0.84)
    stamp(picture, mixed(green, (255, 255, 255), 0.06), bare, strength=235)


def mountains(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw peaks with snow above a wooded valley, and a meadow in front."""
    unit = np.float32(side / 256)
    foot = np.float32(side * rng.uniform(0.62, 0.72))
    picture = blue_sky(rng, side, float(foot))
    for far in (1.0, 0.0):
        _range(rng, picture, float(foot - (8 + 26 * far) * unit), far)
    tips = np.abs(contour(rng, side, 70)) * 9
    wood = foot + (contour(rng, side, 4, 2) * 8 - 6 - tips) * unit
    land(picture, wood, varied(rng, (44, 82, 58), 0.15))
    edge = foot + contour(rng, side, 3) * 5 * unit
    size = rows_below(edge, side), side
    turf = receding(noise(rng, (256, 256), (80, 60), 2, 0.9) * 0.5 + 0.5, size, 3)
    field = turf * 0.6 + 0.18 + down(size[0]) * 0.05 + grain(rng, size) * np.float32(0.1)
    green = varied(rng, (104, 148, 62), 0.12)
    tones = mixed(green, (24, 50, 24), 0.6), green, mixed(green, (226, 222, 120), 0.5)
    land(picture, edge, coloured(field, tones))
    area = (0.0, float(foot) + 10 * float(unit), float(side), side * 1.04)
    for tone in (mixed(tones[0], green, 0.3), mixed(green, tones[2], 0.6)):
        stamp(picture, tone, blades(rng, 45, area, 11 * float(unit)))
    return picture


def _range(rng: np.random.Generator, picture: Image.Image, foot: float, far: float) -> None:
    side = picture.width
    unit = np.float32(side / 256)
    columns = np.arange(side, dtype=np.float32)
    heights = np.full(side, foot, np.float32)
    for _ in range(int(rng.integers(2, 4))):
        peak, high = rng.uniform(0, side), rng.uniform(70, 135) * (0.85 + 0.15 * far)
        slope = np.abs(columns - np.float32(peak)) * np.float32(rng.uniform(0.9, 1.4))
        heights = np.minimum(heights, np.float32(foot) - np.float32(high) * unit + slope)
    heights = heights + contour(rng, side, 12, 4, 0.6) * 9 * unit
    top, bottom = max(0, int(heights.min()) - 1), min(side, int(foot) + int(34 * unit))
    relief = noise(rng, (bottom - top, side), (4, 8), 5, 0.65)
    light = np.diff(relief, axis=1, append=relief[:, -1:]) * (7 * unit)
    light += np.sign(np.gradient(heights)).astype(np.float32) * np.float32(-0.14) + np.float32(0.5)
    rock = varied(rng, (112, 108, 112), 0.12)
    shades = mixed(rock, (20, 24, 44), 0.62), mixed(rock, (255, 244, 226), 0.42)
    dark, pale = (mixed(shade, _HAZE, 0.6 * far) for shade in shades)
    stone = coloured(light, (dark, mixed(dark, pale, 0.5), pale))
    whites: tuple[Colour, ...] = ((150, 170, 206), (226, 234, 246), (255, 255, 255))
    white = coloured(light + np.float32(0.1), [mixed(w, _HAZE, 0.45 * far) for w in whites])
    line = np.float32(foot - top) - np.float32(rng.uniform(38, 62)) * unit
    rows = np.arange(bottom - top, dtype=np.float32)[:, None]
    stone.paste(white, (0, 0), as_mask((line - rows) / (16 * unit) + relief * 2.4))
    picture.paste(stone, (0, top), below(heights - top, bottom - top))
