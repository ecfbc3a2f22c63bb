"""By, on and under water: beach, a lake's surface, the bottom of the sea, each drawn at random."""

from typing import Final

import numpy as np
from PIL import Image

from skies import blue_sky, land, ridge, rows_below
from stencils import discs, leaves, polygon, scattered, stamp
from texture import (
    Colour,
    Size,
    across,
    coloured,
    contour,
    down,
    grain,
    mixed,
    noise,
    receding,
    varied,
)

_SHELLS: Final[tuple[Colour, ...]] = ((250, 240, 228), (236, 178, 150), (166, 120, 84))
_LAKES: Final[tuple[Colour, ...]] = ((38, 112, 170), (30, 128, 160), (60, 126, 176), (36, 92, 150))
_DEPTHS: Final[tuple[Colour, ...]] = ((22, 120, 178), (14, 132, 160), (24, 96, 176))
_WEEDS: Final[tuple[Colour, ...]] = ((36, 110, 74), (58, 140, 76))
_CORALS: Final[tuple[Colour, ...]] = ((224, 104, 110), (236, 150, 84))


def beach(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw sand, surf, sea and sky, at times with shells and a palm."""
    unit = np.float32(side / 256)
    horizon = int(side * rng.uniform(0.26, 0.42))
    picture = blue_sky(rng, side, horizon)
    picture.paste(_sea(rng, (side // 2, side)), (0, horizon))
    slant = (across(side) - np.float32(0.5)) * np.float32(rng.uniform(-44, 44))
    shore = horizon + side * np.float32(rng.uniform(0.12, 0.24))
    line = shore + (slant + contour(rng, side, 4, 3) * 7) * unit
    pale = varied(rng, (240, 216, 166), 0.06)
    size = rows_below(line, side), side
    ripples = receding(noise(rng, (256, 256), (22, 8), 4, 0.7) * 0.5 + 0.5, size, 3)
    field = ripples * 0.8 + 0.1 + grain(rng, size) * np.float32(0.12)
    tones = mixed(pale, (120, 84, 46), 0.45), pale, mixed(pale, (255, 255, 240), 0.6)
    land(picture, line - 5 * unit, (248, 252, 252), 4 * float(unit))
    land(picture, line, mixed(pale, (96, 78, 60), 0.45), 3 * float(unit))
    land(picture, line + 9 * unit, coloured(field, tones), 8 * float(unit))
    for shell in _SHELLS:
        x, y, value = scattered(rng, int(rng.integers(0, 4)), (0, side * 0.72, side, side))
        stamp(picture, shell, discs(x, y, (1.5 + 2 * value) * unit, 0.6))
    if rng.random() < 0.4:
        edge = rng.uniform(0.02, 0.14)
        _palm(rng, picture, side * (edge if rng.random() < 0.5 else 1 - edge))
    return picture


def _sea(rng: np.random.Generator, size: Size) -> Image.Image:
    waves = receding(noise(rng, (256, 256), (36, 9), 3) * 0.5 + 0.5, size, 6)
    warm = rng.random() < 0.6
    deep: Colour = (16, 92, 156) if warm else (22, 70, 128)
    shallow: Colour = (70, 190, 206) if warm else (92, 150, 190)
    field = down(size[0]) * np.float32(0.7) + waves * 0.7 - 0.13
    return coloured(field, (varied(rng, deep, 0.08), shallow, (225, 244, 246)))


def _palm(rng: np.random.Generator, picture: Image.Image, x: float) -> None:
    side = picture.width
    foot, height = side * rng.uniform(0.66, 0.78), side * rng.uniform(0.42, 0.56)
    up = np.linspace(0, 1, 9)
    xs = x + side * (0.08 if x < side / 2 else -0.08) * up**2
    ys, wide = foot - height * up, side * 0.014 * (1.4 - 0.7 * up)
    for shift, tone, strength in ((0.0, (128, 94, 60), 255), (0.005, (164, 126, 84), 120)):
        left, right = xs - wide + side * shift, xs + wide
        sides = zip([*left, *right[::-1]], [*ys, *ys[::-1]], strict=True)
        stamp(picture, tone, polygon(list(sides)), strength=strength)
    angles = np.linspace(-np.pi * 1.12, np.pi * 0.12, 8) + rng.uniform(-0.15, 0.15, 8)
    bends = np.where(np.cos(angles) > 0, 0.9, -0.9)
    lengths = side * rng.uniform(0.17, 0.24, 8)
    lit, shaded = leaves(xs[-1], ys[-1], lengths, angles, 0.13, bends)
    stamp(picture, (30, 96, 44), shaded)
    stamp(picture, (70, 146, 62), lit)


def on_water(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw the rippled surface of a lake, with or without its far shore."""
    unit = side / 256
    horizon = int(side * rng.uniform(0.0, 0.2))
    blue = varied(rng, _LAKES[rng.integers(len(_LAKES))], 0.08)
    pale = mixed(blue, (226, 244, 252), 0.72)
    ripples = noise(rng, (256, 256), (20, 12), 3, 0.55)
    crests = np.clip(1 - np.abs(ripples) * 2.6, 0, 1)
    size = side - horizon, side
    seen = receding(crests * 0.55 + ripples * 0.25 + 0.22, size, 4)
    field = seen * 0.85 + (1 - down(size[0])) * np.float32(0.22)
    picture = Image.new("RGB", (side, side), mixed(pale, (255, 255, 255), 0.35))
    if horizon > 8 * unit:
        hills = np.abs(contour(rng, side, 9, 4)) * np.float32(16 * unit)
        land(picture, np.float32(horizon - 2 * unit) - hills, mixed((70, 104, 84), pale, 0.3))
    tones = mixed(blue, (0, 20, 60), 0.45), blue, mixed(blue, pale, 0.6), (246, 252, 255)
    picture.paste(coloured(field, tones), (0, horizon))
    return picture


def under_water(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw blue depths with beams of light, weeds, corals, bubbles and a lit sandy bottom."""
    unit = side / 256
    blue = _DEPTHS[rng.integers(len(_DEPTHS))]
    rows = down(side)
    slant = (across(side) * 2 - np.float32(1 + rng.uniform(-0.5, 0.5))) / (0.35 + rows)
    comb = contour(rng, side * 5, 46, 2)
    beams = comb[np.clip((slant + 5) * (side / 2), 0, side * 5 - 1).astype(np.int32)]
    field = 0.92 - rows * 0.85 + beams * (1 - rows) * 0.28 + noise(rng, (side, side), (5, 5)) * 0.07
    depths = mixed(blue, (0, 16, 54), 0.72), blue, mixed(blue, (150, 236, 240), 0.7)
    picture = coloured(field, (*depths, (214, 250, 246)))
    bottom = side * rng.uniform(0.72, 0.84)
    rocks = mixed(blue, (0, 24, 60), 0.55)
    land(picture, ridge(rng, side, bottom - 12 * unit, 26 * unit, 5, 4), rocks, 4 * unit)
    net = 1 - np.abs(noise(rng, (256, 256), (26, 22), 2)) * 3
    edge = ridge(rng, side, bottom, 6 * unit, 3)
    size = rows_below(edge, side, 4 * unit), side
    lit = receding(np.clip(net, 0, 1), size, 3)
    bed = lit * 0.4 + 0.3 + grain(rng, size) * np.float32(0.06) + down(size[0]) * np.float32(0.15)
    sand = mixed((214, 206, 160), blue, 0.42)
    tones = mixed(sand, (0, 50, 90), 0.6), sand, mixed(sand, (240, 255, 230), 0.6)
    land(picture, edge, coloured(bed, tones), 4 * unit)
    _reef(rng, picture, bottom)
    x, y, value = scattered(rng, int(rng.integers(10, 26)), (0, 0, side, side * 0.8))
    radius = (1.4 + 4.6 * value**2) * np.float32(unit)
    stamp(picture, (220, 248, 252), discs(x, y, radius), strength=110)
    glints = discs(x - radius * 0.3, y - radius * 0.3, radius * 0.4)
    stamp(picture, (255, 255, 255), glints, strength=220)
    return picture


def _reef(rng: np.random.Generator, picture: Image.Image, bottom: float) -> None:
    side = picture.width
    for colour in (*_WEEDS, *_CORALS):
        edge = rng.uniform(0, 0.22)
        x = side * (edge if rng.random() < 0.5 else 1 - edge)
        foot = bottom + side * rng.uniform(0.03, 0.1)
        if colour in _WEEDS:
            angles = np.linspace(-1.9, -1.2, 6)
            lengths, slim = side * rng.uniform(0.16, 0.36, 6), 0.05
        else:
            angles = np.linspace(-2.3, -0.85, 7)
            lengths, slim = side * rng.uniform(0.06, 0.12, 7), 0.12
        starts, bends = x + side * 0.03 * (angles + 1.57), rng.uniform(-0.6, 0.6, len(angles))
        tone = varied(rng, colour, 0.12)
        lit, shaded = leaves(starts, foot, lengths, angles, slim, bends)
        stamp(picture, tone, lit)
        stamp(picture, mixed(tone, (0, 20, 50), 0.25), shaded)
