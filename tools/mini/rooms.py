"""A living room, drawn from a generator: wall, window, painting, sofa, plant, floor and rug."""

from typing import Final

import numpy as np
from PIL import Image

from boards import planks, wooden
from stencils import Area, Outlines, block, discs, leaves, polygon, stamp
from texture import Colour, coloured, down, gradient, grain, mixed, noise, receding, varied

_WALLS: Final[tuple[Colour, ...]] = (
    (214, 200, 176),
    (168, 190, 188),
    (206, 178, 170),
    (186, 194, 210),
    (196, 204, 168),
)
_RUGS: Final[tuple[Colour, ...]] = ((150, 60, 60), (70, 90, 130), (200, 180, 150), (96, 120, 92))
_CURTAINS: Final[tuple[Colour, ...]] = ((196, 90, 80), (230, 214, 180), (110, 140, 150))
_SOFAS: Final[tuple[Colour, ...]] = (
    (74, 106, 134),
    (150, 84, 70),
    (108, 124, 92),
    (196, 166, 120),
    (120, 100, 140),
)
_PILLOWS: Final[tuple[Colour, ...]] = ((230, 180, 80), (226, 226, 220), (200, 90, 90))
_FRAMES: Final[tuple[Colour, ...]] = ((92, 62, 40), (40, 38, 40), (200, 164, 90))
_WHITE: Final[Colour] = (246, 243, 236)


def living_room(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a room with a sofa, seen from its front; either side may be the window's."""
    unit = side / 256
    foot = int(side * rng.uniform(0.56, 0.66))
    wall = varied(rng, _WALLS[rng.integers(len(_WALLS))], 0.07)
    shade = noise(rng, (side, side), (2, 2)) * 0.22 + 0.6 - down(side) * np.float32(0.2)
    tones = mixed(wall, (60, 50, 50), 0.4), wall, mixed(wall, (255, 255, 255), 0.5)
    picture = coloured(shade, tones)
    boards = receding(planks(rng, (200, 300), 24, 150), (side - foot, side), 2.4)
    picture.paste(wooden(rng, boards)[0], (0, foot))
    block(picture, _WHITE, (0, foot - 8 * unit, side, foot))
    window, sofa = side * rng.uniform(0.04, 0.12), side * rng.uniform(0.42, 0.52)
    _window(rng, picture, (window, side * 0.1, window + side * 0.27, side * 0.42))
    _painting(rng, picture, sofa + side * rng.uniform(0.08, 0.22), side * rng.uniform(0.08, 0.12))
    rug = varied(rng, _RUGS[rng.integers(len(_RUGS))], 0.12)
    middle = side * rng.uniform(0.35, 0.65)
    for scale, tone in ((1.0, rug), (0.88, mixed(rug, (255, 240, 214), 0.45)), (0.8, rug)):
        stamp(picture, tone, discs(middle, side * 0.85, side * 0.4 * scale, 0.27))
    _sofa(rng, picture, sofa, foot)
    _plant(rng, picture, window + side * 0.3, foot + 8 * unit)
    flip = rng.random() < 0.5
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


def _window(rng: np.random.Generator, picture: Image.Image, area: Area) -> None:
    left, top, right, bottom = area
    side = picture.width
    rim = side * 0.02
    block(picture, _WHITE, (left - rim, top - rim, right + rim, bottom + rim))
    garden: Colour = (96, 140, 80)
    day = ((120, 180, 230), (206, 228, 240), (120, 160, 96), garden, garden)
    block(picture, gradient((side, side), day), area)
    middle, half, bar = (left + right) / 2, (top + bottom) / 2, side * 0.008
    block(picture, _WHITE, (middle - bar, top, middle + bar, bottom))
    block(picture, _WHITE, (left, half - bar, right, half + bar))
    cloth = varied(rng, _CURTAINS[rng.integers(len(_CURTAINS))], 0.1)
    folds = np.sin(np.arange(side, dtype=np.float32) * np.float32(140 / side))[None] * 0.3 + 0.5
    tones = mixed(cloth, (0, 0, 0), 0.35), cloth, mixed(cloth, (255, 255, 255), 0.3)
    hung = coloured(folds, tones).resize((side, side), Image.Resampling.NEAREST)
    wide, over, under = side * 0.055, top - side * 0.03, bottom + side * 0.1
    block(picture, hung, (left - wide, over, left + wide * 0.4, under))
    block(picture, hung, (right - wide * 0.4, over, right + wide, under))


def _painting(rng: np.random.Generator, picture: Image.Image, left: float, top: float) -> None:
    side = picture.width
    wide, high, rim = side * rng.uniform(0.16, 0.24), side * rng.uniform(0.12, 0.18), side * 0.014
    frame = _FRAMES[rng.integers(len(_FRAMES))]
    block(picture, frame, (left, top, left + wide, top + high))
    paints: tuple[Colour, ...] = ((40, 70, 110), (230, 220, 190), (200, 90, 60))
    canvas = noise(rng, (round(high), round(wide)), (2, 2), 3) * 0.6 + 0.5
    art = coloured(canvas, [varied(rng, paint, 0.25) for paint in paints])
    inner = art.crop((0, 0, round(wide - 2 * rim), round(high - 2 * rim)))
    picture.paste(inner, (round(left + rim), round(top + rim)))


def _sofa(rng: np.random.Generator, picture: Image.Image, left: float, foot: float) -> None:
    side = picture.width
    unit = side / 256
    cloth = varied(rng, _SOFAS[rng.integers(len(_SOFAS))], 0.12)
    low = np.clip(down(side) - np.float32(foot / side - 0.2), 0, 1)
    woven = grain(rng, (side, side)) * np.float32(0.06) + 0.8 - low * np.float32(1.2)
    fill = coloured(
        woven, (mixed(cloth, (0, 0, 0), 0.6), cloth, mixed(cloth, (255, 255, 255), 0.25))
    )
    right, base = left + side * 0.54, foot + 14 * unit
    shadow = polygon(
        [(left, base), (right, base), (right, base + 7 * unit), (left, base + 7 * unit)]
    )
    stamp(picture, (20, 14, 12), shadow, strength=120)
    stamp(
        picture,
        fill,
        _cushion(left + 8 * unit, foot - 62 * unit, right - 8 * unit, base, 10 * unit),
    )
    seat, back = (mixed(cloth, (255, 255, 255), share) for share in (0.16, 0.08))
    middle = (left + right) / 2
    for a, b in ((left + 14 * unit, middle - unit), (middle + unit, right - 14 * unit)):
        stamp(
            picture,
            back,
            _cushion(a, foot - 56 * unit, b, foot - 25 * unit, 7 * unit),
            strength=200,
        )
        stamp(picture, seat, _cushion(a, foot - 24 * unit, b, foot - 4 * unit, 6 * unit))
    arms = (
        _cushion(a, foot - 42 * unit, a + 18 * unit, base, 7 * unit)
        for a in (left, right - 18 * unit)
    )
    stamp(picture, mixed(cloth, (0, 0, 0), 0.16), *arms)
    pillow = varied(rng, _PILLOWS[rng.integers(len(_PILLOWS))], 0.1)
    x = left + 22 * unit if rng.random() < 0.5 else right - 49 * unit
    stamp(picture, pillow, _cushion(x, foot - 50 * unit, x + 27 * unit, foot - 22 * unit, 5 * unit))


def _cushion(left: float, top: float, right: float, bottom: float, corner: float) -> Outlines:
    """Outline a box with its upper corners rounded off."""
    inner = corner * 0.3
    return polygon(
        [
            (left, top + corner),
            (left + inner, top + inner),
            (left + corner, top),
            (right - corner, top),
            (right - inner, top + inner),
            (right, top + corner),
            (right, bottom),
            (left, bottom),
        ]
    )


def _plant(rng: np.random.Generator, picture: Image.Image, x: float, foot: float) -> None:
    unit = picture.width / 256
    lengths, bends = rng.uniform(30, 52, 8) * unit, rng.uniform(-0.5, 0.5, 8)
    lit, shaded = leaves(x, foot - 22 * unit, lengths, np.linspace(-2.7, -0.4, 8), 0.16, bends)
    stamp(picture, (52, 104, 60), shaded)
    stamp(picture, (84, 144, 78), lit)
    corners = ((-13, -26), (13, -26), (9, 0), (-9, 0))
    pot = polygon([(x + dx * unit, foot + dy * unit) for dx, dy in corners])
    stamp(picture, varied(rng, (190, 110, 76), 0.15), pot)
