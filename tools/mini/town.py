"""In town: a skyline by day and by night, a cobblestone street, each drawn from a generator."""

from typing import Final

import numpy as np
from PIL import Image

from skies import sky
from stencils import Area, block, discs, scattered, stamp
from texture import Colour, coloured, down, gradient, grain, masonry, mixed, noise, receding, varied

_WALLS: Final[tuple[Colour, ...]] = (
    (126, 146, 166),
    (170, 160, 148),
    (150, 106, 88),
    (104, 124, 148),
    (190, 186, 178),
)
_NIGHTS: Final[tuple[tuple[Colour, Colour], ...]] = (
    ((8, 10, 34), (58, 46, 98)),
    ((6, 14, 40), (30, 62, 104)),
    ((16, 8, 36), (104, 50, 96)),
)
_LAMPS: Final[tuple[Colour, ...]] = ((255, 214, 120), (255, 236, 180), (160, 214, 255))
_PAINTS: Final[tuple[Colour, ...]] = (
    (218, 178, 122),
    (196, 126, 96),
    (226, 214, 190),
    (150, 166, 170),
    (214, 160, 150),
)
_DOORS: Final[tuple[Colour, ...]] = ((60, 92, 74), (92, 60, 40), (54, 78, 112), (120, 44, 40))
_STONES: Final[tuple[Colour, ...]] = ((128, 128, 132), (140, 126, 112), (112, 118, 130))


def city(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw towers of glass and stone by day, and a square of paving in front."""
    unit = side / 256
    foot = int(side * rng.uniform(0.7, 0.8))
    top: Colour = (112, 168, 220) if rng.random() < 0.5 else (150, 176, 204)
    pale: Colour = (224, 232, 236)
    picture = sky(rng, side, (top, pale), foot, rng.uniform(0.1, 0.5))
    for far in (0.6, 0.25, 0.0):
        x = -side * rng.uniform(0, 0.08)
        while x < side:
            wide = rng.uniform(20, 40) * unit
            high = side * rng.uniform(0.22, 0.42 + 0.25 * far)
            wall = mixed(varied(rng, _WALLS[rng.integers(len(_WALLS))], 0.12), pale, far)
            glass = mixed(mixed(wall, (30, 50, 80), 0.62), pale, far * 0.4)
            _tower(rng, picture, (x, foot - high, x + wide, foot), (wall, glass), 1.0)
            x += wide + rng.uniform(0, 12) * unit * (1 + far)
    tone, edge = masonry(rng, (200, 256), 40, 50, 0.02)
    size = side - foot, side
    seen = receding(0.6 + tone * 0.08 - (edge < 1.6) * np.float32(0.35), size, 3)
    stone = varied(rng, (150, 148, 146), 0.1)
    tones = mixed(stone, (40, 40, 50), 0.6), stone, mixed(stone, (255, 255, 255), 0.5)
    picture.paste(coloured(seen + grain(rng, size) * np.float32(0.05), tones), (0, foot))
    return picture


def night_city(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw dark towers with lit windows under the moon, and their lights on wet asphalt."""
    unit = side / 256
    foot = int(side * rng.uniform(0.7, 0.8))
    stops = _NIGHTS[rng.integers(len(_NIGHTS))]
    picture = gradient((side, side), stops)
    x, y, value = scattered(rng, 40, (0, 0, side, side * 0.4))
    stamp(picture, (240, 240, 255), discs(x, y, (0.4 + 0.6 * value) * unit), strength=200)
    moon = rng.uniform(0.1, 0.9) * side, side * rng.uniform(0.08, 0.2)
    radius = rng.uniform(9, 15) * unit
    stamp(picture, (250, 244, 214), discs(*moon, radius * 1.5), strength=40)
    stamp(picture, (250, 244, 214), discs(*moon, radius))
    for far in (0.5, 0.0):
        left = -side * rng.uniform(0, 0.08)
        while left < side:
            wide = rng.uniform(22, 42) * unit
            high = side * rng.uniform(0.2, 0.42 + 0.2 * far)
            wall = mixed(varied(rng, (24, 26, 48), 0.25), stops[1], far)
            lamp = mixed(_LAMPS[rng.integers(len(_LAMPS))], wall, far * 0.5)
            _tower(rng, picture, (left, foot - high, left + wide, foot), (wall, lamp), 0.55)
            left += wide + rng.uniform(0, 8) * unit
    _wet(rng, picture, foot)
    return picture


def _wet(rng: np.random.Generator, picture: Image.Image, foot: int) -> None:
    """Mirror what stands above a row in wet asphalt below it."""
    side = picture.width
    above = picture.crop((0, 2 * foot - side, side, foot))
    mirrored = above.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    dark = Image.blend(mirrored, Image.new("RGB", mirrored.size, (14, 14, 26)), 0.62)
    streaks = noise(rng, (side - foot, side), (3, 50), 2) * 0.5 + 0.3
    glow = coloured(streaks, ((10, 10, 22), (46, 42, 66), (150, 120, 110)))
    picture.paste(Image.blend(dark, glow, 0.4), (0, foot))


def _tower(
    rng: np.random.Generator,
    picture: Image.Image,
    area: Area,
    colours: tuple[Colour, Colour],
    lit: float,
) -> None:
    """Set a tower with a lit left edge and rows of windows, a share `lit` of them shown."""
    left, top, right, bottom = area
    wall, glass = colours
    unit = picture.width / 256
    if rng.random() < 0.35:
        middle, wide = (left + right) / 2, (right - left) * 0.26
        block(picture, wall, (middle - wide, top - 9 * unit, middle + wide, top))
        block(picture, wall, (middle - unit, top - 22 * unit, middle + unit, top))
    block(picture, wall, area)
    bright = mixed(wall, (255, 255, 255), 0.16)
    block(picture, bright, (left, top, left + (right - left) * 0.16, bottom))
    step_x, step_y = (max(2, round(n * unit)) for n in (rng.uniform(5, 8), rng.uniform(7, 10)))
    rows = np.arange(max(1, round(bottom - top - 7 * unit)))
    columns = np.arange(max(1, round(right - left - 5 * unit)))
    shown = rng.random((len(rows) // step_y + 1, len(columns) // step_x + 1)) < lit
    panes = shown[rows // step_y][:, columns // step_x]
    panes &= (rows % step_y < step_y * 0.58)[:, None] & (columns % step_x < step_x * 0.6)
    mask = Image.fromarray(panes.astype(np.uint8) * 255)
    picture.paste(glass, (round(left + 3 * unit), round(top + 4 * unit)), mask)


def cobbles(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a cobblestone street that runs along plastered houses."""
    unit = side / 256
    foot = int(side * rng.uniform(0.3, 0.44))
    picture = _houses(rng, side, foot)
    size = side - foot, side
    course = int(rng.integers(20, 28))
    tone, edge = masonry(rng, (384, 384), course, int(course * 1.35))
    dome = np.sqrt(np.clip(edge * np.float32(1 / (course * 0.36)), 0, 1))
    seen = receding(dome * (0.58 + tone * np.float32(0.2)), size, 2.6)
    field = seen + grain(rng, size) * np.float32(0.07) + (down(size[0]) - 0.6) * np.float32(0.12)
    stone = varied(rng, _STONES[rng.integers(len(_STONES))], 0.07)
    joint: Colour = (18, 16, 18)
    tones = mixed(stone, joint, 0.82), mixed(stone, joint, 0.2), mixed(stone, (255, 250, 240), 0.5)
    picture.paste(coloured(field, tones), (0, foot))
    block(picture, (104, 100, 98), (0, foot - 5 * unit, side, foot + 3 * unit))
    block(picture, (54, 52, 54), (0, foot + 3 * unit, side, foot + 5 * unit))
    return picture


def _houses(rng: np.random.Generator, side: int, foot: int) -> Image.Image:
    picture = Image.new("RGB", (side, side))
    plaster = noise(rng, (foot, side), (7, 16), 4, 0.7) * 0.3 + 0.5
    x = -side * rng.uniform(0, 0.3)
    while x < side:
        wide = side * rng.uniform(0.36, 0.6)
        paint = varied(rng, _PAINTS[rng.integers(len(_PAINTS))], 0.1)
        tones = mixed(paint, (60, 40, 30), 0.5), paint, mixed(paint, (255, 255, 255), 0.5)
        block(picture, coloured(plaster, tones), (x, 0, x + wide, foot))
        block(picture, mixed(paint, (40, 30, 26), 0.75), (x, 0, x + side / 128, foot))
        wood = varied(rng, _DOORS[rng.integers(len(_DOORS))], 0.15)
        door = x + wide * rng.uniform(0.08, 0.2)
        area: Area = (door, foot - side * 0.24, door + side * 0.1, foot)
        _opening(picture, area, wood, mixed(wood, (0, 0, 0), 0.3))
        for number in range(2):
            left = x + wide * (0.46 + 0.27 * number)
            area = (left, foot - side * 0.22, left + wide * 0.18, foot - side * 0.09)
            _opening(picture, area, mixed(wood, (240, 236, 226), 0.7), (66, 82, 100))
        x += wide
    return picture


def _opening(picture: Image.Image, area: Area, frame: Colour, pane: Colour) -> None:
    left, top, right, bottom = area
    rim = (right - left) * 0.1
    middle, half = (left + right) / 2, (top + bottom) / 2
    block(picture, frame, area)
    for a, b in ((left + rim, middle - rim / 2), (middle + rim / 2, right - rim)):
        block(picture, pane, (a, top + rim, b, half - rim / 2))
        block(picture, pane, (a, half + rim / 2, b, bottom - rim))
