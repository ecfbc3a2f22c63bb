"""Among trees: forest, jungle, autumn leaves, each drawn from a generator."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image

from skies import land, ridge, rows_below
from stencils import (
    Outlines,
    blades,
    discs,
    fronds,
    leaves,
    polygon,
    scattered,
    stamp,
)
from texture import (
    Colour,
    Field,
    across,
    as_mask,
    coloured,
    down,
    gradient,
    grain,
    mixed,
    noise,
    receding,
    varied,
)

_MISTS: Final[tuple[Colour, ...]] = ((196, 214, 178), (214, 218, 190), (170, 196, 190))
_GREENS: Final[tuple[Colour, ...]] = ((44, 128, 52), (60, 134, 40), (32, 116, 66))
_WARM: Final[tuple[Colour, ...]] = (
    (150, 50, 26),
    (206, 62, 28),
    (232, 122, 28),
    (244, 182, 46),
    (250, 214, 92),
)


def forest(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw rows of tall trunks, the far ones in mist, leaves above and a floor of moss."""
    unit = side / 256
    floor = side * rng.uniform(0.58, 0.72)
    mist = varied(rng, _MISTS[rng.integers(len(_MISTS))], 0.06)
    green = varied(rng, (52, 92, 48), 0.15)
    leafage = noise(rng, (side, side), (10, 10), 4, 0.75)
    far_tones = mixed(green, (0, 20, 10), 0.4), green, mixed(green, mist, 0.7), mist, mist
    picture = coloured(leafage * 0.45 + down(side) * np.float32(0.75), far_tones)
    bark = noise(rng, (side, side), (8, 70), 2) * 0.5 + 0.5
    for far, count, wide in ((0.75, 12, 4.0), (0.4, 7, 8.0), (0.0, 4, 17.0)):
        brown = varied(rng, (92, 70, 52), 0.2)
        shades = mixed(brown, (0, 0, 0), 0.55), brown, mixed(brown, (214, 200, 160), 0.4)
        foot = floor + (4 + 22 * (1 - far)) * unit
        x, _, value = scattered(rng, count, (0, 0, side, 1))
        trunks = _trunks(x, foot + 4 * unit * value, wide * unit * (0.6 + 0.7 * value))
        stamp(picture, coloured(bark, [mixed(shade, mist, far) for shade in shades]), trunks)
        if far > 0:
            edge = ridge(rng, side, foot - 6 * unit, 8 * unit, 30)
            land(picture, edge, mixed(green, mist, far * 0.7), 5 * unit)
    _moss(rng, picture, floor + 8 * unit, green)
    crown = as_mask(0.55 - down(side) * np.float32(rng.uniform(2.2, 3.4)) + leafage * 1.6)
    near_tones = mixed(green, (0, 10, 4), 0.6), mixed(green, (190, 210, 80), 0.35)
    picture.paste(coloured(leafage * 0.6 + 0.5, near_tones), (0, 0), crown)
    return picture


def _trunks(x: Field, foot: Field, wide: Field) -> Outlines:
    shape = ((-0.4, 0), (0.4, 0), (0.5, 1), (0.8, 0), (-0.8, 0), (-0.5, 1))
    tops = (True, True, False, False, False, False)
    points = [
        np.stack((x + wide * aside, np.full_like(x, -2) if top else foot - wide * up), axis=-1)
        for (aside, up), top in zip(shape, tops, strict=True)
    ]
    return np.stack(points, axis=1)


def _moss(rng: np.random.Generator, picture: Image.Image, floor: float, green: Colour) -> None:
    side = picture.width
    unit = side / 256
    edge = ridge(rng, side, floor, 6 * unit, 5, 2)
    size = rows_below(edge, side, 5 * unit), side
    turf = receding(noise(rng, (256, 256), (60, 50), 2, 0.9) * 0.5 + 0.5, size, 3)
    moss = mixed(green, (124, 132, 48), 0.4)
    field = turf * 0.7 + 0.3 - down(size[0]) * np.float32(0.15)
    field += grain(rng, size) * np.float32(0.1)
    tones = mixed(moss, (30, 18, 6), 0.7), moss, mixed(moss, (228, 226, 130), 0.45)
    land(picture, edge, coloured(field, tones), 5 * unit)
    area = (0.0, floor + 8 * unit, float(side), side * 1.04)
    stamp(picture, mixed(moss, tones[2], 0.5), blades(rng, 50, area, 10 * unit))
    x, y, _ = scattered(rng, 3, (0, floor + 10 * unit, side, side))
    length = (14 + 18 * (y - floor) / np.float32(side - floor)) * unit
    angles = np.tile((-2.5, -1.9, -1.2, -0.6), 3) + rng.uniform(-0.2, 0.2, 12)
    fern_x, fern_y, long = (np.repeat(values, 4) for values in (x, y, length))
    lit, shaded = fronds(fern_x, fern_y, long, angles, 0.4 * (angles + np.pi / 2))
    stamp(picture, mixed(green, (60, 120, 40), 0.4), shaded)
    stamp(picture, mixed(green, (110, 170, 50), 0.55), lit)


def jungle(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw layers of large leaves, fronds and vines, dark within and lit from behind."""
    unit = side / 256
    green = varied(rng, _GREENS[rng.integers(len(_GREENS))], 0.1)
    depth = noise(rng, (side, side), (7, 7), 4, 0.7)
    light = np.exp(-((across(side) - np.float32(rng.uniform(0.3, 0.7))) ** 2) * 9)
    field = depth * 0.35 + light * (0.84 - down(side) * np.float32(0.8)) + 0.1
    deep = mixed(green, (0, 12, 8), 0.85), mixed(green, (0, 30, 14), 0.45)
    picture = coloured(field, (*deep, mixed(green, (196, 226, 120), 0.55), (226, 240, 176)))
    x, _, value = scattered(rng, 7, (0, 0, side, 1))
    hang = x + 8 * unit * (value - 0.5), side * (0.35 + 0.4 * value)
    ends = ((x, np.full_like(x, -1)), hang, (x + 2.4 * unit, np.full_like(x, -1)))
    vines = np.stack([np.stack(end, axis=-1) for end in ends], axis=1).astype(np.float32)
    stamp(picture, (52, 60, 28), vines)
    for layer, dark in enumerate((0.55, 0.25, 0.0)):
        _foliage(rng, picture, mixed(varied(rng, green, 0.14), (0, 24, 16), dark), layer)
    edge = ridge(rng, side, side * rng.uniform(0.8, 0.88), 5 * unit, 6, 2)
    size = rows_below(edge, side, 6 * unit), side
    floor = noise(rng, size, (8, 26), 2, 0.8) * 0.5 + 0.45
    soil = coloured(floor, ((34, 38, 16), (86, 92, 38), (138, 138, 62)))
    land(picture, edge, soil, 6 * unit)
    area = (0.0, side * 0.84, float(side), side * 1.06)
    stamp(picture, mixed(green, (170, 220, 70), 0.3), blades(rng, 50, area, 26 * unit))
    return picture


def _foliage(rng: np.random.Generator, picture: Image.Image, tone: Colour, layer: int) -> None:
    """Set broad leaves at both edges, fronds that bend inwards, and leaves hanging from above."""
    side = picture.width
    length = side * (0.22 + 0.04 * layer)
    lit: list[Outlines] = []
    shaded: list[Outlines] = []
    for edge in (-1, 1):
        x = side * (0.5 + edge * rng.uniform(0.42 + 0.03 * layer, 0.54))
        angles = rng.uniform(0, 0.5) - np.pi / 2 - edge * np.linspace(-0.5, 1.5, 5)
        places = side * rng.uniform(0.35, 0.95, 5)
        sizes, bends = length * rng.uniform(0.8, 1.2, 5), -edge * rng.uniform(0.5, 1.1, 5)
        halves = [leaves(x, places, sizes, angles, rng.uniform(0.16, 0.24), bends)]
        start = side * (0.5 + edge * 0.54), side * rng.uniform(0.15, 0.8)
        turn = -np.pi / 2 - edge * rng.uniform(0.5, 1.2)
        halves.append(fronds(*start, length * rng.uniform(1.3, 1.8), turn, -edge * 1.1))
        lit += [half[0] for half in halves]
        shaded += [half[1] for half in halves]
    hung = leaves(
        side * rng.random(5),
        -4,
        length * rng.uniform(0.6, 1.1, 5),
        rng.uniform(0.7, 2.4, 5),
        0.18,
        0.2,
    )
    stamp(picture, mixed(tone, (0, 20, 10), 0.35), *shaded, hung[1])
    stamp(picture, mixed(tone, (206, 236, 110), 0.22), *lit, hung[0])


def autumn(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a tree with red and yellow leaves, and a ground covered with fallen ones."""
    unit = side / 256
    floor = side * rng.uniform(0.55, 0.68)
    stops: tuple[Colour, Colour] = (
        ((150, 186, 214), (232, 228, 208))
        if rng.random() < 0.6
        else ((214, 206, 190), (240, 226, 196))
    )
    picture = gradient((side, side), stops)
    leafage = noise(rng, (side, side), (12, 12), 4, 0.85)
    back = coloured(leafage * 0.6 + 0.5, [mixed(tone, stops[1], 0.45) for tone in _WARM])
    edge = ridge(rng, side, side * rng.uniform(0.24, 0.36), 34 * unit, 7, 5)
    land(picture, edge, back, 3 * unit)
    x, _, value = scattered(rng, 9, (0, 0, side, 1))
    far = _trunks(x, np.full_like(x, floor + 2 * unit), (2 + 3 * value) * unit)
    far[:, :2, 1] = side * 0.36
    stamp(picture, mixed((74, 50, 36), stops[1], 0.3), far, strength=170)
    edge = ridge(rng, side, floor, 6 * unit, 3)
    size = rows_below(edge, side, 3 * unit), side
    litter = receding(noise(rng, (256, 256), (70, 60), 2, 0.9) * 0.5 + 0.5, size, 3)
    field = litter * 0.8 + 0.2 - down(size[0]) * np.float32(0.15)
    field += grain(rng, size) * np.float32(0.12)
    soil = coloured(field, ((88, 42, 20), (176, 92, 34), (222, 160, 62)))
    land(picture, edge, soil, 3 * unit)
    x_tree = side * (rng.uniform(0.06, 0.3) if rng.random() < 0.5 else rng.uniform(0.7, 0.94))
    _tree(rng, picture, (x_tree, floor + 16 * unit), leafage)
    for colour in _WARM[1:]:
        x, y, value = scattered(rng, 36, (0, floor + 6 * unit, side, side * 1.02))
        y[:4] = floor * value[:4]  # some still fall
        near = np.clip((y - floor) / np.float32(side - floor), 0, 1)
        sizes = (4 + (3 + 5 * value) * near) * np.float32(unit)
        stamp(picture, varied(rng, colour, 0.1), *leaves(x, y, sizes, value * 40, 0.3))
    return picture


def _tree(
    rng: np.random.Generator,
    picture: Image.Image,
    foot: tuple[float, float],
    leafage: Field,
) -> None:
    x, y = foot
    side = picture.width
    wide, top = side * rng.uniform(0.03, 0.045), side * 0.12
    halves: Sequence[tuple[float, float]] = ((1.5, y), (0.7, y - side * 0.1), (0.4, top))
    right = [(x + wide * share, row) for share, row in halves]
    wood = [polygon([*right, *((2 * x - px, py) for px, py in reversed(right))])]
    for sign, start, reach in ((-1, 0.36, 0.2), (-1, 0.28, 0.26), (1, 0.37, 0.24), (1, 0.29, 0.2)):
        fork, tip = side * start, x + sign * side * reach
        branch = [(x - wide * 0.3, fork + wide), (tip, fork - side * 0.18), (x + wide * 0.3, fork)]
        wood.append(polygon(branch))
    columns, rows = across(side) - np.float32(x / side), down(side) - np.float32(0.16)
    reach_x, reach_y = rng.uniform(0.28, 0.36), rng.uniform(0.2, 0.26)
    round_ = 1 - (columns / np.float32(reach_x)) ** 2 - (rows / np.float32(reach_y)) ** 2
    leafage = leafage[:, ::-1]
    crown = as_mask((round_ + leafage * 1.3) * 5)
    light = leafage * 0.75 + 0.5 - rows - columns * np.float32(0.5)
    picture.paste(coloured(light - 0.25, _WARM), (0, 0), crown)
    stamp(picture, (74, 50, 36), *wood)
    inner = as_mask((round_ + leafage[::-1, ::-1] * 1.6 - 0.2) * 5)
    picture.paste(coloured(light, _WARM), (0, 0), inner)
    angle, far = rng.random((2, 60)) * [[2 * np.pi], [1.0]]
    tufts_x = x + side * reach_x * far**0.5 * np.cos(angle)
    tufts_y = side * 0.16 + side * reach_y * far**0.5 * np.sin(angle)
    for number, colour in enumerate(_WARM[1::2]):
        stamp(picture, colour, discs(tufts_x[number::2], tufts_y[number::2], side * 0.011, 0.8))
