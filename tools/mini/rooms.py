"""Indoors: living room, wooden table, wooden floor, fabric. Each is drawn from a generator."""

import numpy as np
from PIL import Image
from stencils import Polygon, box, disc, leaf, scattered, stamp
from texture import (
    Colour,
    Field,
    coloured,
    down,
    gradient,
    grain,
    masonry,
    mixed,
    noise,
    receding,
    varied,
)

WOODS: tuple[Colour, ...] = ((176, 116, 66), (150, 92, 52), (200, 148, 94), (120, 74, 46))


def _planks(rng: np.random.Generator, size: tuple[int, int], course: int, length: int) -> Field:
    """Lay planks along the rows: light in 0..1, with grain along them and dark joints."""
    tone, edge = masonry(rng, size, course, length)
    figure = noise(rng, size, (size[0] // 5, 3), 2, 0.7)
    rings = np.sin(noise(rng, size, (size[0] // course * 2, 2), 2) * 14 + tone * 9)
    field = 0.55 + tone * 0.16 + figure * 0.2 + rings * 0.07
    return np.clip(field * np.clip(edge / 2.2, 0.25, 1), 0, 1)


def _wood(field: Field, wood: Colour) -> Image.Image:
    return coloured(
        field, (mixed(wood, (24, 10, 4), 0.8), wood, mixed(wood, (255, 224, 170), 0.55))
    )


def table(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a table top of boards across the picture, before a room that is out of focus."""
    unit = side / 256
    back = int(side * rng.uniform(0.3, 0.46))
    wall = varied(
        rng, ((92, 84, 80), (120, 128, 124), (70, 84, 98), (150, 136, 118))[rng.integers(4)], 0.12
    )
    blurred = noise(rng, (back, side), (2, 4), 2) * 0.35 + 0.45 + (0.5 - down(back)) * 0.2
    picture = Image.new("RGB", (side, side))
    picture.paste(
        coloured(blurred, (mixed(wall, (10, 8, 8), 0.5), wall, mixed(wall, (255, 236, 200), 0.45))),
        (0, 0),
    )
    for x, y, value in scattered(rng, int(rng.integers(3, 9)), (0, 0, side, back)):
        glow = ((255, 214, 140), (255, 240, 214), (250, 176, 110))[int(value * 3)]
        radius = (7 + 12 * value) * unit
        stamp(picture, [disc(x, y, radius)], glow, 60)
        stamp(picture, [disc(x, y, radius * 0.86)], glow, 50)
    wood = varied(rng, WOODS[rng.integers(len(WOODS))], 0.1)
    boards = receding(
        _planks(rng, (256, 320), int(rng.integers(42, 64)), 900), (side - back, side), 2.2
    )
    light = np.float32(rng.uniform(-0.15, 0.15)) * np.linspace(-1, 1, side, dtype=np.float32)
    picture.paste(_wood(boards + light + (0.5 - down(side - back)) * 0.18, wood), (0, back))
    stamp(
        picture,
        [box(0, back - 2 * unit, side, back + 1.5 * unit)],
        mixed(wood, (255, 232, 190), 0.5),
        190,
    )
    return picture


def wooden_floor(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw floor boards that run away from the viewer to a wall with a skirting board."""
    unit = side / 256
    foot = int(side * rng.uniform(0.1, 0.24))
    wood = varied(rng, WOODS[rng.integers(len(WOODS))], 0.1)
    boards = _planks(rng, (384, 384), int(rng.integers(30, 44)), 230).T
    sheen = noise(rng, (side - foot, side), (3, 3), 1) * 0.14
    floor = receding(np.ascontiguousarray(boards), (side - foot, side), 2.6) + sheen
    wall = varied(
        rng,
        ((226, 222, 212), (206, 214, 216), (222, 206, 186), (196, 206, 192))[rng.integers(4)],
        0.06,
    )
    picture = gradient((side, side), (mixed(wall, (0, 0, 0), 0.08), wall))
    picture.paste(_wood(floor, wood), (0, foot))
    stamp(picture, [box(0, foot - 15 * unit, side, foot)], (246, 244, 238))
    stamp(picture, [box(0, foot - 15 * unit, side, foot - 14 * unit)], (176, 170, 162))
    stamp(picture, [box(0, foot, side, foot + 3 * unit)], mixed(wood, (0, 0, 0), 0.7), 170)
    return picture


def pink_fabric(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw pink cloth with soft folds, seen from above."""
    pink = varied(rng, ((240, 150, 184), (232, 124, 168), (246, 176, 196))[rng.integers(3)], 0.05)
    angle = rng.uniform(0, np.pi)
    x = np.linspace(-1, 1, side, dtype=np.float32)
    along = x * np.float32(np.cos(angle)) + x[:, None] * np.float32(np.sin(angle))
    warp = noise(rng, (side, side), (3, 3), 3, 0.45)
    folds = np.sin(along * np.float32(rng.uniform(5, 9)) + warp * np.float32(rng.uniform(4, 6)))
    weave = np.sin(np.arange(side, dtype=np.float32) * 2.1)
    field = (
        0.55
        + folds * 0.27 * (0.75 + 0.5 * warp)
        + weave * weave[:, None] * 0.03
        + grain(rng, (side, side)) * 0.03
    )
    dark = mixed(pink, (120, 20, 70), 0.62)
    return coloured(field, (dark, mixed(pink, dark, 0.25), pink, mixed(pink, (255, 244, 248), 0.6)))


def living_room(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a wall with a picture and a window, a sofa before it, a floor and a rug."""
    unit = side / 256
    foot = int(side * rng.uniform(0.56, 0.66))
    wall = varied(
        rng,
        ((214, 200, 176), (168, 190, 188), (206, 178, 170), (186, 194, 210), (196, 204, 168))[
            rng.integers(5)
        ],
        0.07,
    )
    shade = noise(rng, (side, side), (2, 2), 1) * 0.22 + 0.5 + (0.5 - down(side)) * 0.2
    picture = coloured(
        shade, (mixed(wall, (60, 50, 50), 0.4), wall, mixed(wall, (255, 255, 255), 0.5))
    )
    wood = varied(rng, WOODS[rng.integers(len(WOODS))], 0.1)
    boards = receding(_planks(rng, (200, 300), 24, 150), (side - foot, side), 2.4)
    picture.paste(_wood(boards, wood), (0, foot))
    stamp(picture, [box(0, foot - 8 * unit, side, foot)], (240, 236, 228))
    flip = rng.random() < 0.5
    window, sofa = side * rng.uniform(0.04, 0.12), side * rng.uniform(0.42, 0.52)
    _window(rng, picture, (window, side * 0.1, window + side * 0.27, side * 0.42))
    _painting(rng, picture, (sofa + side * rng.uniform(0.08, 0.22), side * rng.uniform(0.08, 0.12)))
    rug = varied(
        rng, ((150, 60, 60), (70, 90, 130), (200, 180, 150), (96, 120, 92))[rng.integers(4)], 0.12
    )
    middle = side * rng.uniform(0.35, 0.65)
    for scale, tone in ((1.0, rug), (0.88, mixed(rug, (255, 240, 214), 0.45)), (0.8, rug)):
        stamp(picture, [disc(middle, side * 0.85, side * 0.4 * scale, 0.27)], tone)
    _sofa(rng, picture, (sofa, foot), flip)
    _plant(rng, picture, window + side * 0.3, foot + 8 * unit)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


def _window(
    rng: np.random.Generator, picture: Image.Image, at: tuple[float, float, float, float]
) -> None:
    left, top, right, bottom = at
    side = picture.width
    stamp(
        picture,
        [box(left - side * 0.02, top - side * 0.02, right + side * 0.02, bottom + side * 0.02)],
        (248, 246, 240),
    )
    view = gradient(
        (side, side),
        ((120, 180, 230), (206, 228, 240), (120, 160, 96), (96, 140, 80), (96, 140, 80)),
    )
    stamp(picture, [box(*at)], view)
    middle, half, bar = (left + right) / 2, (top + bottom) / 2, side * 0.008
    stamp(
        picture,
        [box(middle - bar, top, middle + bar, bottom), box(left, half - bar, right, half + bar)],
        (248, 246, 240),
    )
    cloth = varied(rng, ((196, 90, 80), (230, 214, 180), (110, 140, 150))[rng.integers(3)], 0.1)
    folds = np.sin(np.arange(side, dtype=np.float32) * np.float32(0.55 * 256 / side)) * 0.3 + 0.5
    hung = coloured(
        np.broadcast_to(folds, (side, side)),
        (mixed(cloth, (0, 0, 0), 0.35), cloth, mixed(cloth, (255, 255, 255), 0.3)),
    )
    wide = side * 0.055
    stamp(
        picture,
        [
            box(left - wide, top - side * 0.03, left + wide * 0.4, bottom + side * 0.1),
            box(right - wide * 0.4, top - side * 0.03, right + wide, bottom + side * 0.1),
        ],
        hung,
    )


def _painting(rng: np.random.Generator, picture: Image.Image, at: tuple[float, float]) -> None:
    left, top = at
    side = picture.width
    wide, high, rim = side * rng.uniform(0.16, 0.24), side * rng.uniform(0.12, 0.18), side * 0.014
    stamp(
        picture,
        [box(left, top, left + wide, top + high)],
        ((92, 62, 40), (40, 38, 40), (200, 164, 90))[rng.integers(3)],
    )
    art = coloured(
        noise(rng, (side, side), (9, 7), 2),
        tuple(varied(rng, c, 0.25) for c in ((40, 70, 110), (230, 220, 190), (200, 90, 60))),
    )
    stamp(picture, [box(left + rim, top + rim, left + wide - rim, top + high - rim)], art)


def _sofa(
    rng: np.random.Generator, picture: Image.Image, at: tuple[float, float], flip: bool
) -> None:
    left, foot = at
    side = picture.width
    unit = side / 256
    cloth = varied(
        rng,
        ((74, 106, 134), (150, 84, 70), (108, 124, 92), (196, 166, 120), (120, 100, 140))[
            rng.integers(5)
        ],
        0.12,
    )
    woven = (
        grain(rng, (side, side)) * 0.16 + 0.75 - np.clip(down(side) - foot / side + 0.2, 0, 1) * 1.4
    )
    fill = coloured(
        woven, (mixed(cloth, (0, 0, 0), 0.6), cloth, mixed(cloth, (255, 255, 255), 0.25))
    )
    right = left + side * 0.54
    low = foot + 14 * unit
    stamp(picture, [box(left, low, right, low + 7 * unit)], (20, 14, 12), 120)
    stamp(
        picture,
        [_cushion(left + 8 * unit, foot - 62 * unit, right - 8 * unit, low, 10 * unit)],
        fill,
    )
    seat = mixed(cloth, (255, 255, 255), 0.16)
    middle = (left + right) / 2
    for a, b in ((left + 14 * unit, middle - unit), (middle + unit, right - 14 * unit)):
        stamp(picture, [_cushion(a, foot - 24 * unit, b, foot - 4 * unit, 6 * unit)], seat)
        stamp(
            picture,
            [_cushion(a, foot - 56 * unit, b, foot - 25 * unit, 7 * unit)],
            mixed(cloth, (255, 255, 255), 0.08),
            200,
        )
    for a in (left, right - 18 * unit):
        stamp(
            picture,
            [_cushion(a, foot - 42 * unit, a + 18 * unit, low, 7 * unit)],
            mixed(cloth, (0, 0, 0), 0.16),
        )
    pillow = varied(rng, ((230, 180, 80), (226, 226, 220), (200, 90, 90))[rng.integers(3)], 0.1)
    x = right - 48 * unit if flip else left + 22 * unit
    stamp(
        picture, [_cushion(x, foot - 50 * unit, x + 27 * unit, foot - 22 * unit, 5 * unit)], pillow
    )


def _cushion(left: float, top: float, right: float, bottom: float, corner: float) -> Polygon:
    """Outline a box with its corners cut off."""
    c = corner
    return [
        (left, top + c),
        (left + c * 0.3, top + c * 0.3),
        (left + c, top),
        (right - c, top),
        (right - c * 0.3, top + c * 0.3),
        (right, top + c),
        (right, bottom),
        (left, bottom),
    ]


def _plant(rng: np.random.Generator, picture: Image.Image, x: float, foot: float) -> None:
    unit = picture.width / 256
    halves = [
        leaf(x, foot - 22 * unit, rng.uniform(30, 52) * unit, angle, 0.16, rng.uniform(-0.5, 0.5))
        for angle in np.linspace(-2.7, -0.4, 8)
    ]
    stamp(picture, [half[0] for half in halves], (52, 104, 60))
    stamp(picture, [half[1] for half in halves], (84, 144, 78))
    pot = varied(rng, (190, 110, 76), 0.15)
    stamp(
        picture,
        [
            [
                (x - 13 * unit, foot - 26 * unit),
                (x + 13 * unit, foot - 26 * unit),
                (x + 9 * unit, foot),
                (x - 9 * unit, foot),
            ]
        ],
        pot,
    )
