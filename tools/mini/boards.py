"""Grounds to lay a thing on: a wooden table, a wooden floor, pink fabric, drawn at random."""

from typing import Final

import numpy as np
from PIL import Image

from stencils import block, discs, scattered, stamp
from texture import (
    Colour,
    Field,
    Size,
    across,
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

_WOODS: Final[tuple[Colour, ...]] = ((176, 116, 66), (150, 92, 52), (200, 148, 94), (120, 74, 46))
_DIM: Final[tuple[Colour, ...]] = ((92, 84, 80), (120, 128, 124), (70, 84, 98), (150, 136, 118))
_GLOWS: Final[tuple[Colour, ...]] = ((255, 214, 140), (255, 240, 214), (250, 176, 110))
_PALE: Final[tuple[Colour, ...]] = (
    (226, 222, 212),
    (206, 214, 216),
    (222, 206, 186),
    (196, 206, 192),
)
_PINKS: Final[tuple[Colour, ...]] = ((240, 150, 184), (232, 124, 168), (246, 176, 196))


def planks(rng: np.random.Generator, size: Size, course: int, length: int) -> Field:
    """Lay planks along the rows: light in 0..1, with a grain along them and dark joints."""
    tone, edge = masonry(rng, size, course, length)
    figure = noise(rng, size, (size[0] // 5, 3), 2, 0.7)
    rings = np.sin(noise(rng, size, (size[0] // course * 2, 2), 2) * 14 + tone * 9)
    field = 0.58 + tone * 0.15 + figure * 0.15 + rings * 0.07
    jointed: Field = field.clip(0.25, 1) * np.clip(edge * np.float32(1 / 2.2), 0.25, 1)
    return jointed


def wooden(rng: np.random.Generator, field: Field) -> tuple[Image.Image, Colour]:
    """Paint the light of `planks` as one of several woods, and say its colour."""
    wood = varied(rng, _WOODS[rng.integers(len(_WOODS))], 0.1)
    tones = mixed(wood, (24, 10, 4), 0.8), wood, mixed(wood, (255, 224, 170), 0.55)
    return coloured(field, tones), wood


def table(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a table top of boards across the picture, before a room that is out of focus."""
    unit = side / 256
    back = int(side * rng.uniform(0.3, 0.46))
    wall = varied(rng, _DIM[rng.integers(len(_DIM))], 0.12)
    blurred = noise(rng, (back, side), (2, 4), 2) * 0.35 + 0.55 - down(back) * np.float32(0.2)
    tones = mixed(wall, (10, 8, 8), 0.5), wall, mixed(wall, (255, 236, 200), 0.45)
    picture = Image.new("RGB", (side, side))
    picture.paste(coloured(blurred, tones), (0, 0))
    for glow in _GLOWS:
        x, y, value = scattered(rng, int(rng.integers(1, 4)), (0, 0, side, back))
        for share in (1.0, 0.86):
            stamp(picture, glow, discs(x, y, (7 + 12 * value) * unit * share), strength=55)
    size = side - back, side
    boards = receding(planks(rng, (256, 320), int(rng.integers(42, 64)), 900), size, 2.2)
    light = (across(side) - np.float32(0.5)) * np.float32(rng.uniform(-0.3, 0.3))
    top, wood = wooden(rng, boards + light + (0.5 - down(size[0])) * np.float32(0.18))
    picture.paste(top, (0, back))
    edge = (0, back - 2 * unit, side, back + 1.5 * unit)
    block(picture, mixed(wood, (255, 232, 190), 0.4), edge)
    return picture


def wooden_floor(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw floor boards that run away from the viewer to a wall with a skirting board."""
    unit = side / 256
    foot = int(side * rng.uniform(0.1, 0.24))
    size = side - foot, side
    boards = np.ascontiguousarray(planks(rng, (384, 384), int(rng.integers(30, 44)), 230).T)
    sheen = noise(rng, size, (3, 3)) * np.float32(0.14)
    floor, wood = wooden(rng, receding(boards, size, 2.6) + sheen)
    wall = varied(rng, _PALE[rng.integers(len(_PALE))], 0.06)
    picture = gradient((side, side), (mixed(wall, (0, 0, 0), 0.08), wall))
    picture.paste(floor, (0, foot))
    block(picture, (246, 244, 238), (0, foot - 15 * unit, side, foot))
    block(picture, (176, 170, 162), (0, foot - 15 * unit, side, foot - 14 * unit))
    block(picture, mixed(wood, (0, 0, 0), 0.55), (0, foot, side, foot + 2 * unit))
    return picture


def pink_fabric(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw pink cloth with soft folds, seen from above."""
    pink = varied(rng, _PINKS[rng.integers(len(_PINKS))], 0.05)
    angle = rng.uniform(0, np.pi)
    x = across(side) * 2 - 1
    along = x * np.float32(np.cos(angle)) + x[:, None] * np.float32(np.sin(angle))
    warp = noise(rng, (side, side), (3, 3), 3, 0.45)
    folds = np.sin(along * np.float32(rng.uniform(8, 13)) + warp * np.float32(rng.uniform(3, 5)))
    threads = np.sin(np.arange(side, dtype=np.float32) * np.float32(2.1))
    field = 0.55 + folds * (0.3 + 0.12 * warp) + threads * threads[:, None] * np.float32(0.03)
    field += grain(rng, (side, side)) * np.float32(0.03)
    dark = mixed(pink, (120, 20, 70), 0.62)
    return coloured(field, (dark, mixed(pink, dark, 0.25), pink, mixed(pink, (255, 244, 248), 0.6)))
