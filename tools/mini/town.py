"""In town: a skyline by day and by night, a cobblestone street. Each is drawn from a generator."""

import numpy as np
from PIL import Image
from stencils import Polygon, box, disc, scattered, sky, stamp
from texture import Colour, coloured, down, gradient, grain, masonry, mixed, noise, receding, varied


def city(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw towers of glass and stone by day, and a square of paving in front."""
    unit = side / 256
    foot = side * rng.uniform(0.7, 0.8)
    stops = (((112, 168, 220), (220, 232, 240)), ((150, 176, 204), (228, 230, 230)))[
        rng.integers(2)
    ]
    picture = sky(rng, side, stops, foot, rng.uniform(0.1, 0.5))
    walls: tuple[Colour, ...] = (
        (126, 146, 166),
        (170, 160, 148),
        (150, 106, 88),
        (104, 124, 148),
        (190, 186, 178),
    )
    for far in (0.6, 0.25, 0.0):
        x = -side * rng.uniform(0, 0.08)
        while x < side:
            wide = rng.uniform(20, 40) * unit
            high = side * rng.uniform(0.22, 0.42 + 0.25 * far)
            wall = mixed(varied(rng, walls[rng.integers(len(walls))], 0.12), stops[1], far)
            glass = mixed(mixed(wall, (30, 50, 80), 0.62), stops[1], far * 0.4)
            _tower(rng, picture, (x, foot - high, x + wide, foot), wall, glass)
            x += wide + rng.uniform(0, 12) * unit * (1 + far)
    _square(rng, picture, int(foot), varied(rng, (150, 148, 146), 0.1))
    return picture


def night_city(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw dark towers with lit windows under the moon, and their lights on wet asphalt."""
    unit = side / 256
    foot = side * rng.uniform(0.7, 0.8)
    stops = (
        ((8, 10, 34), (58, 46, 98)),
        ((6, 14, 40), (30, 62, 104)),
        ((16, 8, 36), (104, 50, 96)),
    )[rng.integers(3)]
    picture = gradient((side, side), stops)
    stamp(
        picture,
        [
            disc(x, y, (0.4 + 0.6 * v) * unit)
            for x, y, v in scattered(rng, 40, (0, 0, side, side * 0.4))
        ],
        (240, 240, 255),
        200,
    )
    moon = (rng.uniform(0.1, 0.9) * side, side * rng.uniform(0.08, 0.2), rng.uniform(9, 15) * unit)
    stamp(picture, [disc(moon[0], moon[1], moon[2] * 1.5)], (250, 244, 214), 40)
    stamp(picture, [disc(*moon)], (250, 244, 214))
    for far in (0.5, 0.0):
        x = -side * rng.uniform(0, 0.08)
        while x < side:
            wide = rng.uniform(22, 42) * unit
            high = side * rng.uniform(0.2, 0.42 + 0.2 * far)
            wall = mixed(varied(rng, (24, 26, 48), 0.25), stops[1], far)
            lamp = mixed(
                ((255, 214, 120), (255, 236, 180), (160, 214, 255))[rng.integers(3)],
                wall,
                far * 0.5,
            )
            _tower(rng, picture, (x, foot - high, x + wide, foot), wall, lamp, lit=0.55)
            x += wide + rng.uniform(0, 8) * unit
    mirrored = picture.crop((0, int(foot) - (side - int(foot)), side, int(foot))).transpose(
        Image.Transpose.FLIP_TOP_BOTTOM
    )
    wet = Image.blend(mirrored, Image.new("RGB", mirrored.size, (14, 14, 26)), 0.62)
    streaks = noise(rng, (wet.height, side), (3, 50), 2) * 0.5 + 0.3
    glow = coloured(streaks, ((10, 10, 22), (46, 42, 66), (150, 120, 110)))
    picture.paste(Image.blend(wet, glow, 0.4), (0, int(foot)))
    return picture


def _tower(
    rng: np.random.Generator,
    picture: Image.Image,
    at: tuple[float, float, float, float],
    wall: Colour,
    glass: Colour,
    lit: float = 1.0,
) -> None:
    left, top, right, bottom = at
    unit = picture.width / 256
    parts = [box(left, top, right, bottom)]
    if rng.random() < 0.35:
        middle, wide = (left + right) / 2, (right - left) * 0.26
        parts += [
            box(middle - wide, top - 9 * unit, middle + wide, top),
            box(middle - unit, top - 22 * unit, middle + unit, top),
        ]
    stamp(picture, parts, wall)
    stamp(
        picture,
        [box(left, top, left + (right - left) * 0.16, bottom)],
        mixed(wall, (255, 255, 255), 0.16),
    )
    across, up = rng.uniform(5, 8) * unit, rng.uniform(7, 10) * unit
    columns = np.arange(left + 3 * unit, right - across * 0.8, across)
    rows = np.arange(top + 4 * unit, bottom - up * 0.5, up)
    shown = rng.random((len(rows), len(columns))) < lit
    windows = [
        box(columns[c], rows[r], columns[c] + across * 0.6, rows[r] + up * 0.58)
        for r, c in np.argwhere(shown)
    ]
    stamp(picture, windows, glass)


def _square(rng: np.random.Generator, picture: Image.Image, foot: int, stone: Colour) -> None:
    side = picture.width
    tone, edge = masonry(rng, (200, 256), 40, 50, 0.02)
    field = 0.6 + tone * 0.08 - (edge < 1.6) * 0.35
    seen = receding(field, (side - foot, side), 3) + grain(rng, (side - foot, side)) * 0.05
    picture.paste(
        coloured(
            seen, (mixed(stone, (40, 40, 50), 0.6), stone, mixed(stone, (255, 255, 255), 0.5))
        ),
        (0, foot),
    )


def cobbles(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a cobblestone street that runs along plastered houses."""
    unit = side / 256
    foot = int(side * rng.uniform(0.3, 0.44))
    picture = _houses(rng, side, foot)
    rows = side - foot
    course = int(rng.integers(20, 28))
    tone, edge = masonry(rng, (384, 384), course, int(course * 1.35))
    dome = np.clip(edge / np.float32(course * 0.36), 0, 1)
    field = dome**0.6 * (0.58 + tone * 0.2)
    seen = (
        receding(field, (rows, side), 2.6)
        + grain(rng, (rows, side)) * 0.07
        + (down(rows) - 0.6) * 0.12
    )
    stone = varied(rng, ((128, 128, 132), (140, 126, 112), (112, 118, 130))[rng.integers(3)], 0.1)
    street = coloured(
        seen,
        (
            mixed(stone, (18, 16, 18), 0.82),
            mixed(stone, (18, 16, 18), 0.2),
            mixed(stone, (255, 250, 240), 0.5),
        ),
    )
    picture.paste(street, (0, foot))
    stamp(picture, [box(0, foot - 5 * unit, side, foot + 3 * unit)], (104, 100, 98))
    stamp(picture, [box(0, foot + 3 * unit, side, foot + 6 * unit)], (54, 52, 54), 200)
    return picture


def _houses(rng: np.random.Generator, side: int, foot: int) -> Image.Image:
    unit = side / 256
    picture = Image.new("RGB", (side, side))
    plaster = noise(rng, (side, side), (12, 12), 4, 0.7) * 0.3 + 0.5
    paints: tuple[Colour, ...] = (
        (218, 178, 122),
        (196, 126, 96),
        (226, 214, 190),
        (150, 166, 170),
        (214, 160, 150),
    )
    x = -side * rng.uniform(0, 0.3)
    while x < side:
        wide = side * rng.uniform(0.36, 0.6)
        paint = varied(rng, paints[rng.integers(len(paints))], 0.1)
        wall = coloured(
            plaster, (mixed(paint, (60, 40, 30), 0.5), paint, mixed(paint, (255, 255, 255), 0.5))
        )
        stamp(picture, [box(x, -1, x + wide, foot)], wall)
        stamp(picture, [box(x, -1, x + 2 * unit, foot)], (70, 56, 48), 170)
        wood = varied(
            rng, ((60, 92, 74), (92, 60, 40), (54, 78, 112), (120, 44, 40))[rng.integers(4)], 0.15
        )
        door = x + wide * rng.uniform(0.08, 0.2)
        _opening(
            picture,
            (door, foot - side * 0.24, door + side * 0.1, foot),
            wood,
            mixed(wood, (0, 0, 0), 0.3),
        )
        for number in range(2):
            left = x + wide * (0.46 + 0.27 * number)
            _opening(
                picture,
                (left, foot - side * 0.22, left + wide * 0.18, foot - side * 0.09),
                mixed(wood, (240, 236, 226), 0.7),
                (66, 82, 100),
            )
        x += wide
    return picture


def _opening(
    picture: Image.Image, at: tuple[float, float, float, float], frame: Colour, pane: Colour
) -> None:
    left, top, right, bottom = at
    rim = (right - left) * 0.1
    middle, half = (left + right) / 2, (top + bottom) / 2
    stamp(picture, [box(*at)], frame)
    panes: list[Polygon] = []
    for a, b in ((left + rim, middle - rim / 2), (middle + rim / 2, right - rim)):
        panes += [box(a, top + rim, b, half - rim / 2), box(a, half + rim / 2, b, bottom - rim)]
    stamp(picture, panes, pane)
