"""Dry and green land: desert and meadow, each drawn from a generator."""

from typing import Final

import numpy as np
from PIL import Image

from skies import blue_sky, land, ridge, rows_below, sky
from stencils import Area, Outlines, blades, discs, polygon, scattered, stamp
from texture import Colour, coloured, contour, down, grain, mixed, noise, receding, varied

_PETALS: Final[tuple[Colour, ...]] = (
    (250, 250, 246),
    (250, 208, 52),
    (226, 70, 76),
    (176, 104, 204),
    (246, 150, 190),
)


def desert(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw dunes with lit and shaded sides, at times with a sun and cacti."""
    unit = side / 256
    horizon = side * rng.uniform(0.32, 0.5)
    top: Colour = ((92, 158, 214), (70, 140, 208), (226, 176, 120))[rng.integers(3)]
    picture = sky(rng, side, (top, (240, 222, 186)), horizon, 0)
    if rng.random() < 0.6:
        at = rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.5) * horizon
        stamp(picture, (255, 250, 224), discs(*at, rng.uniform(10, 16) * unit))
    sand = varied(rng, (226, 166, 94), 0.08)
    tones = mixed(sand, (122, 62, 30), 0.62), sand, mixed(sand, (255, 232, 176), 0.55)
    for number, level in enumerate(np.linspace(horizon, side * 0.8, int(rng.integers(3, 5)))):
        _dune(rng, picture, level, (10 + 9 * number) * unit, tones)
    if rng.random() < 0.7:
        count = int(rng.integers(1, 4))
        places = scattered(rng, count, (0, horizon + 20 * unit, side, side * 0.75))
        for x, y, value in zip(*places, strict=True):
            edge = x * 0.25 if x < side / 2 else side - (side - x) * 0.25
            green = varied(rng, (72, 122, 70), 0.15)
            _cactus(picture, (float(edge), float(y)), (40 + 44 * float(value)) * unit, green)
    return picture


def _dune(
    rng: np.random.Generator,
    picture: Image.Image,
    level: float,
    swing: float,
    tones: tuple[Colour, Colour, Colour],
) -> None:
    side = picture.width
    unit = np.float32(side / 256)
    crest = ridge(rng, side, level, swing * 1.6, 2, 1)
    size = rows_below(crest, side), side
    rows = np.arange(side - size[0], side, dtype=np.float32)[:, None]
    sweep = crest + contour(rng, side, 3) * 34 * unit + np.float32(rng.uniform(4, 30)) * unit
    ripples = np.sin(rows * (0.75 / unit) + noise(rng, size, (5, 3)) * 16) * np.float32(0.07)
    shaded = np.clip((sweep - rows) / (3 * unit), 0, 1)
    field = 0.82 - shaded * 0.52 - (rows - crest) * np.float32(0.25 / side)
    field += ripples + grain(rng, size) * np.float32(0.05)
    land(picture, crest, coloured(field, tones))


def _cactus(picture: Image.Image, foot: tuple[float, float], height: float, green: Colour) -> None:
    x, y = foot
    limbs: list[Outlines] = []
    lights: list[Outlines] = []
    for offset, low, high in ((0.0, 0.0, 1.0), (-0.26, 0.38, 0.74), (0.26, 0.28, 0.86)):
        thick = height * (0.1 if offset == 0 else 0.072)
        middle, top, bottom = x + offset * height, y - high * height, y - low * height
        limbs.append(_rounded(middle - thick, top, middle + thick, bottom, thick))
        lights.append(_rounded(middle - thick * 0.6, top + thick, middle - thick * 0.1, bottom, 0))
        if offset:
            left, right = min(x, middle) - thick, max(x, middle) + thick
            limbs.append(_rounded(left, bottom - thick, right, bottom + thick * 0.6, 0))
    shadow = discs(x + height * 0.1, y, height * 0.3, 0.14)
    stamp(picture, (110, 66, 40), shadow, strength=150)
    stamp(picture, mixed(green, (0, 20, 20), 0.25), *limbs)
    stamp(picture, mixed(green, (220, 240, 160), 0.4), *lights)


def _rounded(left: float, top: float, right: float, bottom: float, corner: float) -> Outlines:
    inner = corner * 0.4
    return polygon(
        [
            (left, top + corner),
            (left + inner * 0.4, top + inner),
            (left + corner, top),
            (right - corner, top),
            (right - inner * 0.4, top + inner),
            (right, top + corner),
            (right, bottom),
            (left, bottom),
        ]
    )


def meadow(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw grass with blades and flowers, a wood behind it and a blue sky."""
    unit = side / 256
    horizon = side * rng.uniform(0.2, 0.36)
    picture = blue_sky(rng, side, horizon)
    tops = np.abs(contour(rng, side, int(rng.integers(8, 22)), 4, 0.6)) * rng.uniform(8, 34)
    leafage = noise(rng, (side, side), (40, 40), 2) * 0.5 + 0.5
    wood = coloured(leafage, ((36, 78, 44), (92, 140, 76)))
    land(picture, np.float32(horizon) - (3 + tops) * np.float32(unit), wood)
    green = varied(rng, (84, 160, 52), 0.12)
    tones = mixed(green, (10, 50, 20), 0.55), green, mixed(green, (226, 236, 110), 0.5)
    top = int(horizon)
    size = (side - top, side)
    turf = receding(noise(rng, (256, 256), (60, 60), 2, 0.9) * 0.5 + 0.5, size, 4)
    strands = noise(rng, size, (24, 110))
    field = turf * 0.7 + strands * 0.16 + 0.12 + (0.5 - down(side - top)) * np.float32(0.2)
    picture.paste(coloured(field, tones), (0, top))
    area = (0.0, horizon + 8 * unit, float(side), side * 1.04)
    for tone in (tones[0], tones[2], mixed(green, tones[2], 0.4)):
        stamp(picture, tone, blades(rng, 60, area, 22 * unit))
    for index in rng.permutation(len(_PETALS))[: rng.integers(1, 4)]:
        _flowers(rng, picture, area, _PETALS[index])
    return picture


def _flowers(rng: np.random.Generator, picture: Image.Image, area: Area, petal: Colour) -> None:
    x, y, value = scattered(rng, int(rng.integers(8, 22)), area)
    near = (y - area[1]) / (area[3] - area[1])
    radius = (0.9 + 3.4 * near + value) * np.float32(picture.width / 256)
    turns = value[:, None] * 2 + np.arange(5) * (2 * np.pi / 5)
    around_x = x[:, None] + radius[:, None] * np.cos(turns)
    around_y = y[:, None] + radius[:, None] * 0.8 * np.sin(turns)
    petals = discs(around_x.ravel(), around_y.ravel(), np.repeat(radius * 0.7, 5))
    stamp(picture, petal, petals)
    heart: Colour = (240, 180, 40) if petal[2] > 100 else (120, 70, 30)
    stamp(picture, heart, discs(x, y, radius * 0.6))
