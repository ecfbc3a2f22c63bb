"""Among trees: forest, jungle, autumn leaves. Each is drawn from a generator."""

import numpy as np
from PIL import Image
from stencils import Polygon, blades, disc, land, leaf, scattered, stamp
from texture import (
    Colour,
    as_mask,
    coloured,
    contour,
    down,
    gradient,
    grain,
    mixed,
    noise,
    receding,
    varied,
)


def forest(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw rows of tall trunks, the far ones in mist, and a floor of moss."""
    unit = side / 256
    floor = side * rng.uniform(0.58, 0.72)
    mist = varied(rng, ((196, 214, 178), (214, 218, 190), (170, 196, 190))[rng.integers(3)], 0.06)
    green = varied(rng, (52, 92, 48), 0.15)
    leaves = noise(rng, (side, side), (10, 10), 4, 0.75)
    picture = coloured(
        leaves * 0.45 + down(side) * 0.75,
        (mixed(green, (0, 20, 10), 0.4), green, mixed(green, mist, 0.7), mist, mist),
    )
    bark = noise(rng, (side, side), (8, 70), 2) * 0.5 + 0.5
    for far, count, wide in ((0.75, 12, 4.0), (0.4, 7, 8.0), (0.0, 4, 17.0)):
        brown = varied(rng, (92, 70, 52), 0.2)
        tones = tuple(
            mixed(tone, mist, far)
            for tone in (mixed(brown, (0, 0, 0), 0.55), brown, mixed(brown, (214, 200, 160), 0.4))
        )
        foot = floor + (4 + 22 * (1 - far)) * unit
        trunks = [
            _trunk(x, foot + 4 * v * unit, wide * (0.6 + 0.7 * v) * unit)
            for x, _, v in scattered(rng, count, (0, 0, side, 1))
        ]
        stamp(picture, trunks, coloured(bark, tones))
        if far > 0.2:
            edge = foot - 6 * unit + contour(rng, side, 30, 3) * 8 * unit
            land(picture, edge, mixed(green, mist, far * 0.7), 5 * unit)
    turf = receding(noise(rng, (256, 256), (34, 34), 3, 0.8) * 0.5 + 0.5, (side, side), 3)
    moss = mixed(green, (124, 132, 48), 0.4)
    field = turf * 0.8 + 0.2 - (down(side) - 0.7) * 0.5 + grain(rng, (side, side)) * 0.08
    earth = coloured(
        field, (mixed(moss, (30, 18, 6), 0.7), moss, mixed(moss, (228, 226, 130), 0.45))
    )
    ground = picture.copy()
    land(ground, floor + (10 + contour(rng, side, 5, 2) * 6) * unit, earth, 5 * unit)
    near = [_trunk(x, floor + 34 * unit, 17 * unit) for x in ()]
    stamp(ground, near, moss)
    crown = as_mask(0.55 - down(side) * rng.uniform(2.2, 3.4) + leaves * 1.6)
    ground.paste(
        coloured(
            leaves * 0.6 + 0.5, (mixed(green, (0, 10, 4), 0.6), mixed(green, (190, 210, 80), 0.35))
        ),
        (0, 0),
        crown,
    )
    return ground


def _trunk(x: float, foot: float, wide: float) -> Polygon:
    half = wide / 2
    return [
        (x - half * 0.8, -2),
        (x + half * 0.8, -2),
        (x + half, foot - wide),
        (x + half * 1.6, foot),
        (x - half * 1.6, foot),
        (x - half, foot - wide),
    ]


def jungle(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw layers of large hanging leaves and vines, dark within and lit in front."""
    unit = side / 256
    green = varied(rng, ((44, 128, 52), (60, 134, 40), (32, 116, 66))[rng.integers(3)], 0.1)
    depth = noise(rng, (side, side), (7, 7), 4, 0.7)
    light = np.exp(
        -((np.linspace(0, 1, side, dtype=np.float32) - np.float32(rng.uniform(0.3, 0.7))) ** 2) * 9
    )
    field = depth * 0.35 + light * (1.05 - down(side)) * 0.8 + 0.1
    picture = coloured(
        field,
        (
            mixed(green, (0, 12, 8), 0.85),
            mixed(green, (0, 30, 14), 0.45),
            mixed(green, (196, 226, 120), 0.55),
            (226, 240, 176),
        ),
    )
    vines = [
        [
            (x + k, -1.0),
            (x + k + 6 * unit * (v - 0.5), side * (0.35 + 0.4 * v)),
            (x + k + 2.4 * unit, -1.0),
        ]
        for x, _, v in scattered(rng, 7, (0, 0, side, 1))
        for k in (0.0,)
    ]
    stamp(picture, vines, (52, 60, 28))
    for layer, (share, size) in enumerate(((0.55, 56), (0.25, 66), (0.0, 76))):
        tone = mixed(varied(rng, green, 0.14), (0, 24, 16), share)
        _foliage(rng, picture, tone, size * unit, layer)
    soil = side * rng.uniform(0.8, 0.88) + contour(rng, side, 6, 2) * 5 * unit
    floor = noise(rng, (side, side), (40, 26), 2, 0.8) * 0.5 + 0.45
    land(picture, soil, coloured(floor, ((34, 38, 16), (86, 92, 38), (138, 138, 62))), 6 * unit)
    stamp(
        picture,
        blades(rng, 40, (0, side * 0.84, side, side * 1.06), 26 * unit),
        mixed(green, (170, 220, 70), 0.3),
    )
    return picture


def _foliage(
    rng: np.random.Generator, picture: Image.Image, tone: Colour, length: float, layer: int
) -> None:
    side = picture.width
    lit: list[Polygon] = []
    shaded: list[Polygon] = []
    for edge in (-1, 1):
        for _ in range(3):
            x = side / 2 + edge * side * rng.uniform(0.3 + 0.07 * layer, 0.56)
            y = side * rng.uniform(0.0, 0.95)
            for angle in rng.uniform(-np.pi, np.pi) + np.arange(5) * 1.05:
                halves = leaf(
                    x,
                    y,
                    length * rng.uniform(0.6, 1.1),
                    angle,
                    rng.uniform(0.1, 0.2),
                    0.5 * np.sign(np.cos(angle)),
                )
                lit.append(halves[0])
                shaded.append(halves[1])
    for _ in range(5):
        x, hang = rng.uniform(0, side), rng.uniform(0.7, 2.4)
        halves = leaf(x, -4, length * rng.uniform(0.7, 1.2), hang, 0.16, 0.2)
        lit.append(halves[0])
        shaded.append(halves[1])
    stamp(picture, shaded, mixed(tone, (0, 20, 10), 0.35))
    stamp(picture, lit, mixed(tone, (206, 236, 110), 0.22))


def autumn(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a tree with red and yellow leaves, and a ground covered with fallen ones."""
    unit = side / 256
    floor = side * rng.uniform(0.55, 0.68)
    sky: tuple[Colour, Colour] = (
        ((150, 186, 214), (232, 228, 208)),
        ((214, 206, 190), (240, 226, 196)),
    )[rng.integers(2)]
    picture = gradient((side, side), sky)
    warm: list[Colour] = [
        (206, 62, 28),
        (232, 122, 28),
        (244, 182, 46),
        (168, 60, 30),
        (214, 150, 40),
    ]
    woods = noise(rng, (side, side), (16, 16), 3, 0.8) * 0.5 + 0.5
    back = coloured(
        woods,
        (mixed(warm[3], sky[1], 0.35), mixed(warm[1], sky[1], 0.35), mixed(warm[2], sky[1], 0.4)),
    )
    land(
        picture,
        side * rng.uniform(0.22, 0.36) + contour(rng, side, 5, 4, 0.6) * 22 * unit,
        back,
        3 * unit,
    )
    litter = receding(noise(rng, (256, 256), (50, 50), 2, 0.9) * 0.5 + 0.5, (side, side), 3)
    field = litter * 0.8 + 0.15 + grain(rng, (side, side)) * 0.12 - (down(side) - 0.75) * 0.4
    land(
        picture,
        floor + contour(rng, side, 3) * 6 * unit,
        coloured(field, ((88, 42, 20), (176, 92, 34), (222, 160, 62))),
        3 * unit,
    )
    left = rng.random() < 0.5
    x = side * (rng.uniform(0.06, 0.3) if left else rng.uniform(0.7, 0.94))
    _tree(rng, picture, (x, floor + 16 * unit), warm)
    for colour in warm:
        fallen = [
            half
            for px, py, v in scattered(rng, 26, (0, floor + 6 * unit, side, side * 1.02))
            for half in leaf(px, py, (4 + 9 * (py - floor) / side * 3 * v) * unit, v * 40, 0.3)
        ]
        stamp(picture, fallen, varied(rng, colour, 0.1))
        falling = [
            leaf(px, py, (5 + 4 * v) * unit, v * 40, 0.32)[0]
            for px, py, v in scattered(rng, 3, (0, 0, side, floor))
        ]
        stamp(picture, falling, colour)
    return picture


def _tree(
    rng: np.random.Generator, picture: Image.Image, foot: tuple[float, float], warm: list[Colour]
) -> None:
    x, y = foot
    side = picture.width
    wide = side * rng.uniform(0.03, 0.045)
    top = side * 0.12
    trunk: Polygon = [
        (x - wide * 1.5, y),
        (x - wide * 0.7, y - side * 0.1),
        (x - wide * 0.4, top),
        (x + wide * 0.4, top),
        (x + wide * 0.7, y - side * 0.1),
        (x + wide * 1.5, y),
    ]
    branches: list[Polygon] = []
    for sign in (-1, 1):
        for start, reach in ((0.36, 0.2), (0.28, 0.26)):
            by = side * start
            branches.append(
                [
                    (x - wide * 0.3, by + wide),
                    (x + sign * side * reach, by - side * 0.18),
                    (x + wide * 0.3, by - wide * 0.5),
                ]
            )
    stamp(picture, [trunk, *branches], (74, 50, 36))
    stamp(
        picture, [[(px * 0.4 + x * 0.6 - wide * 0.3, py) for px, py in trunk]], (116, 82, 56), 150
    )
    for colour in (warm[3], warm[0], warm[1], warm[2]):
        tufts = []
        for _ in range(26):
            angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random()) * side
            tufts.append(
                disc(
                    x + far * 0.36 * np.cos(angle),
                    side * 0.17 + far * 0.22 * np.sin(angle),
                    side * rng.uniform(0.012, 0.04),
                    0.8,
                )
            )
        stamp(picture, tufts, varied(rng, colour, 0.08))
