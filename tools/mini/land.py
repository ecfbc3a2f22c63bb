"""Open country: beach, snow, mountains, desert, meadow, sunset. Each is drawn from a generator."""

import numpy as np
from PIL import Image
from stencils import Polygon, blades, disc, fir, land, leaf, ridge, scattered, sky, stamp
from texture import (
    Colour,
    as_mask,
    coloured,
    contour,
    down,
    grain,
    mixed,
    noise,
    receding,
    varied,
)

BLUE_SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((86, 156, 226), (208, 230, 244)),
    ((58, 128, 214), (180, 216, 240)),
    ((120, 178, 226), (226, 236, 240)),
)


def _blue_sky(rng: np.random.Generator, side: int, horizon: float) -> Image.Image:
    top, pale = BLUE_SKIES[rng.integers(len(BLUE_SKIES))]
    return sky(rng, side, (varied(rng, top, 0.06), pale, pale), horizon, rng.uniform(0.15, 0.65))


def _sea(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    rows, columns = size
    waves = receding(noise(rng, (256, 256), (28, 7), 3) * 0.5 + 0.5, size, 6)
    deep, light = (
        ((16, 92, 156), (70, 190, 206)) if rng.random() < 0.6 else ((22, 70, 128), (92, 150, 190))
    )
    field = down(rows) * 0.55 + (waves - 0.5) * 0.7 + 0.22
    return coloured(field, (varied(rng, deep, 0.08), light, (225, 244, 246)))


def beach(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw sand, surf, sea and sky, at times with a palm."""
    unit = side / 256
    horizon = int(side * rng.uniform(0.26, 0.42))
    picture = _blue_sky(rng, side, horizon)
    picture.paste(_sea(rng, (side - horizon, side)), (0, horizon))
    wet = (
        rng.choice((-1, 1)) * np.linspace(-1, 1, side, dtype=np.float32) * rng.uniform(0, 22) * unit
    )
    shore = horizon + side * rng.uniform(0.12, 0.24) + wet + contour(rng, side, 4, 3) * 7 * unit
    pale = varied(rng, (240, 216, 166), 0.06)
    ripples = receding(noise(rng, (256, 256), (22, 8), 4, 0.7) * 0.5 + 0.5, (side, side), 4)
    field = (ripples - 0.5) * 0.8 + 0.5 + grain(rng, (side, side)) * 0.12
    sand = coloured(
        field, (mixed(pale, (120, 84, 46), 0.45), pale, mixed(pale, (255, 255, 240), 0.6))
    )
    land(picture, shore - 5 * unit, (248, 252, 252), 4 * unit)
    land(picture, shore, mixed(pale, (96, 78, 60), 0.45), 3 * unit)
    land(picture, shore + 9 * unit, sand, 8 * unit)
    for x, y, value in scattered(rng, int(rng.integers(0, 9)), (0, side * 0.72, side, side)):
        shell = ((250, 240, 228), (236, 178, 150), (166, 120, 84))[int(value * 3)]
        stamp(picture, [disc(x, y, (1.5 + 2 * value) * unit, 0.6)], shell)
    if rng.random() < 0.4:
        _palm(
            rng,
            picture,
            side * (rng.uniform(0.02, 0.14) if rng.random() < 0.5 else rng.uniform(0.86, 0.98)),
            side,
        )
    return picture


def _palm(rng: np.random.Generator, picture: Image.Image, x: float, side: int) -> None:
    foot, height = side * rng.uniform(0.66, 0.78), side * rng.uniform(0.42, 0.56)
    lean = side * 0.08 * (1 if x < side / 2 else -1)
    up = np.linspace(0, 1, 9)
    xs, ys = x + lean * up**2, foot - height * up
    wide = side * 0.014 * (1.4 - 0.7 * up)
    trunk: Polygon = [
        *zip(xs - wide, ys, strict=True),
        *zip((xs + wide)[::-1], ys[::-1], strict=True),
    ]
    stamp(picture, [trunk], (128, 94, 60))
    stamp(picture, [[(px + side * 0.005, py) for px, py in trunk]], (164, 126, 84), 120)
    dark, light = [], []
    for angle in np.linspace(-np.pi * 1.12, np.pi * 0.12, 8) + rng.uniform(-0.15, 0.15, 8):
        bend = 0.9 if np.cos(angle) > 0 else -0.9
        halves = leaf(xs[-1], ys[-1], side * rng.uniform(0.17, 0.24), angle, 0.13, bend)
        light.append(halves[0])
        dark.append(halves[1])
    stamp(picture, dark, (30, 96, 44))
    stamp(picture, light, (70, 146, 62))


def snow(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw snowy ground, firs with snow on them, and falling flakes."""
    unit = side / 256
    horizon = side * rng.uniform(0.36, 0.52)
    stops = (
        ((150, 168, 192), (214, 222, 232)),
        ((176, 190, 208), (232, 236, 242)),
        ((104, 150, 206), (206, 224, 240)),
    )
    picture = sky(rng, side, stops[rng.integers(3)], horizon, rng.uniform(0.2, 0.7))
    hill = ridge(rng, side, horizon - 18 * unit, 14 * unit, 3)
    land(picture, hill, (176, 190, 206), 2)
    teeth = np.abs(contour(rng, side, 60)) * 16 * unit
    land(picture, hill + 10 * unit - teeth, (112, 132, 148), 2)
    ground = horizon + contour(rng, side, 3) * 8 * unit
    drifts = receding(noise(rng, (256, 256), (9, 4), 4) * 0.5 + 0.5, (side, side), 3)
    field = drifts * 0.9 + 0.18 + grain(rng, (side, side)) * 0.05
    land(picture, ground, coloured(field, ((168, 188, 216), (226, 234, 246), (252, 253, 255))))
    green = varied(rng, (34, 72, 58), 0.2)
    for x, y, value in scattered(
        rng, int(rng.integers(4, 9)), (0, horizon, side, horizon + side * 0.12)
    ):
        height = (34 + 60 * value + (y - horizon) * 1.2) * unit
        _snowy_fir(rng, picture, (x, y + 4 * unit), height, green)
    flakes = [
        disc(x, y, (0.6 + 2.2 * v**3) * unit) for x, y, v in scattered(rng, 110, (0, 0, side, side))
    ]
    stamp(picture, flakes, (255, 255, 255), 225)
    return picture


def _snowy_fir(
    rng: np.random.Generator,
    picture: Image.Image,
    at: tuple[float, float],
    height: float,
    green: Colour,
) -> None:
    x, foot = at
    stamp(picture, [disc(x, foot, height * 0.28, 0.16)], (170, 186, 212), 170)
    tree = fir(x, foot, height)
    stamp(picture, [tree], green)
    lit = [
        (px - height * 0.012, py - height * 0.02)
        for px, py in fir(x - height * 0.05, foot - height * 0.08, height * 0.9)
    ]
    stamp(picture, [lit], (236, 242, 250), 150)
    stamp(
        picture,
        [
            [
                (px + height * 0.02, py + height * 0.07)
                for px, py in fir(x, foot - height * 0.1, height * 0.84)
            ]
        ],
        mixed(green, (255, 255, 255), 0.06),
        235,
    )


def mountains(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw peaks with snow above a valley, and a meadow in front."""
    unit = side / 256
    foot = side * rng.uniform(0.62, 0.72)
    picture = _blue_sky(rng, side, foot)
    for far in (1.0, 0.0):
        _range(rng, picture, foot - (8 + 26 * far) * unit, far)
    wood = (
        foot
        - 6 * unit
        + contour(rng, side, 4, 2) * 8 * unit
        - np.abs(contour(rng, side, 70)) * 9 * unit
    )
    land(picture, wood, varied(rng, (44, 82, 58), 0.15))
    grass = receding(noise(rng, (256, 256), (40, 40), 3, 0.8) * 0.5 + 0.5, (side, side), 3)
    field = grass * 0.75 + down(side) * 0.15 + grain(rng, (side, side)) * 0.1
    green = varied(rng, (104, 148, 62), 0.12)
    land(
        picture,
        foot + contour(rng, side, 3) * 5 * unit,
        coloured(
            field, (mixed(green, (24, 50, 24), 0.6), green, mixed(green, (226, 222, 120), 0.5))
        ),
    )
    return picture


def _range(rng: np.random.Generator, picture: Image.Image, foot: float, far: float) -> None:
    side = picture.width
    unit = side / 256
    x = np.arange(side, dtype=np.float32)
    heights = np.full(side, foot, np.float32)
    for _ in range(int(rng.integers(2, 4))):
        peak, high = rng.uniform(0, side), rng.uniform(70, 135) * unit * (0.85 + 0.15 * far)
        slope = rng.uniform(0.9, 1.4)
        heights = np.minimum(heights, foot - high + np.abs(x - peak) * np.float32(slope))
    heights = heights + contour(rng, side, 12, 4, 0.6) * np.float32(9 * unit)
    relief = noise(rng, (side, side), (6, 8), 5, 0.65)
    lit = np.diff(relief, axis=1, append=relief[:, -1:]) * np.float32(7 * unit) + np.float32(0.5)
    slant = np.sign(np.gradient(heights))[None, :] * np.float32(-0.14)
    rock = varied(rng, (112, 108, 112), 0.12)
    haze: Colour = (176, 200, 224)
    dark, light = (
        mixed(c, haze, 0.6 * far)
        for c in (mixed(rock, (20, 24, 44), 0.62), mixed(rock, (255, 244, 226), 0.42))
    )
    stone = coloured(lit + slant, (dark, mixed(dark, light, 0.5), light))
    white = coloured(
        lit + slant + np.float32(0.1),
        tuple(
            mixed(c, haze, 0.45 * far) for c in ((150, 170, 206), (226, 234, 246), (255, 255, 255))
        ),
    )
    line = foot - np.float32(rng.uniform(38, 62) * unit)
    snowed = (line - np.arange(side, dtype=np.float32)[:, None]) / np.float32(
        16 * unit
    ) + relief * 2.4
    stone.paste(white, (0, 0), as_mask(snowed))
    land(picture, heights, stone)


def desert(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw dunes with lit and shaded sides, at times with a cactus."""
    unit = side / 256
    horizon = side * rng.uniform(0.32, 0.5)
    top = ((92, 158, 214), (70, 140, 208), (226, 176, 120))[rng.integers(3)]
    picture = sky(rng, side, (top, (240, 222, 186)), horizon, 0)
    if rng.random() < 0.6:
        sun = disc(
            rng.uniform(0.1, 0.9) * side,
            rng.uniform(0.1, 0.5) * horizon,
            rng.uniform(10, 16) * unit,
        )
        stamp(picture, [sun], (255, 250, 224))
    sand = varied(rng, (226, 166, 94), 0.08)
    dark, light = mixed(sand, (122, 62, 30), 0.62), mixed(sand, (255, 232, 176), 0.55)
    levels = np.linspace(horizon, side * 0.8, int(rng.integers(3, 5)))
    for number, level in enumerate(levels):
        _dune(rng, picture, level, (10 + 9 * number) * unit, (dark, sand, light))
    if rng.random() < 0.6:
        for x, y, value in scattered(
            rng, int(rng.integers(1, 3)), (0, horizon + 20 * unit, side, side * 0.75)
        ):
            _cactus(
                picture,
                x if abs(x - side / 2) > side / 5 else x / 3,
                y,
                (40 + 44 * value) * unit,
                varied(rng, (72, 122, 70), 0.15),
            )
    return picture


def _dune(
    rng: np.random.Generator,
    picture: Image.Image,
    level: float,
    swing: float,
    tones: tuple[Colour, Colour, Colour],
) -> None:
    side = picture.width
    unit = side / 256
    crest = ridge(rng, side, level, swing * 1.6, 2, 1)
    rows = np.arange(side, dtype=np.float32)[:, None]
    sweep = (
        crest
        + contour(rng, side, 3) * np.float32(34 * unit)
        + np.float32(rng.uniform(4, 30) * unit)
    )
    ripples = (
        np.sin((rows * 0.75 + noise(rng, (side, side), (6, 3)) * 16 * unit) / np.float32(unit))
        * 0.07
    )
    shaded = np.clip((sweep - rows) / np.float32(3 * unit), 0, 1)
    depth = (rows - crest) / np.float32(side)
    field = 0.82 - shaded * 0.52 - depth * 0.25 + ripples + grain(rng, (side, side)) * 0.05
    land(picture, crest, coloured(field, tones))


def _cactus(picture: Image.Image, x: float, foot: float, height: float, green: Colour) -> None:
    wide = height * 0.1
    limbs: list[Polygon] = []
    lights: list[Polygon] = []
    for offset, low, high in ((0.0, 0.0, 1.0), (-0.26, 0.38, 0.74), (0.26, 0.28, 0.86)):
        thick = wide if offset == 0 else wide * 0.72
        left, top = x + offset * height, foot - high * height
        limbs += [
            [
                (left - thick, foot - low * height),
                (left - thick, top + thick),
                (left - thick * 0.6, top),
                (left + thick * 0.6, top),
                (left + thick, top + thick),
                (left + thick, foot - low * height),
            ]
        ]
        lights += [
            [
                (left - thick * 0.6, foot - low * height),
                (left - thick * 0.6, top + thick),
                (left - thick * 0.1, top + thick),
                (left - thick * 0.1, foot - low * height),
            ]
        ]
        limbs += [
            [
                (min(x, left) - thick, foot - low * height - thick),
                (max(x, left) + thick, foot - low * height - thick),
                (max(x, left) + thick, foot - low * height + thick * 0.6),
                (min(x, left) - thick, foot - low * height + thick * 0.6),
            ]
        ]
    stamp(picture, [disc(x + wide, foot, height * 0.3, 0.14)], (110, 66, 40), 150)
    stamp(picture, limbs, mixed(green, (0, 20, 20), 0.25))
    stamp(picture, lights, mixed(green, (220, 240, 160), 0.4))


def meadow(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw grass with blades and flowers under a blue sky."""
    unit = side / 256
    horizon = side * rng.uniform(0.2, 0.36)
    picture = _blue_sky(rng, side, horizon)
    trees = (
        horizon
        - 3 * unit
        - np.abs(contour(rng, side, int(rng.integers(8, 22)), 4, 0.6)) * rng.uniform(8, 34) * unit
    )
    land(
        picture,
        trees,
        coloured(noise(rng, (side, side), (40, 40), 2) * 0.5 + 0.5, ((36, 78, 44), (92, 140, 76))),
    )
    green = varied(rng, (84, 160, 52), 0.12)
    dark, light = mixed(green, (10, 50, 20), 0.55), mixed(green, (226, 236, 110), 0.5)
    turf = receding(noise(rng, (256, 256), (60, 60), 2, 0.9) * 0.5 + 0.5, (side, side), 4)
    strands = noise(rng, (side, side), (24, 110), 1)
    field = turf * 0.7 + strands * 0.16 + 0.12 + (0.5 - down(side)) * 0.2
    land(picture, np.full(side, horizon, np.float32), coloured(field, (dark, green, light)))
    area = (0.0, horizon + 8 * unit, float(side), side * 1.04)
    for tone in (dark, light, mixed(green, light, 0.4)):
        stamp(picture, blades(rng, 60, area, 22 * unit), tone)
    for colour in rng.permutation(
        [(250, 250, 246), (250, 208, 52), (226, 70, 76), (176, 104, 204), (246, 150, 190)]
    )[: rng.integers(1, 4)]:
        _flowers(rng, picture, area, tuple(int(c) for c in colour))
    return picture


def _flowers(
    rng: np.random.Generator,
    picture: Image.Image,
    area: tuple[float, float, float, float],
    colour: Colour,
) -> None:
    unit = picture.width / 256
    petals, hearts = [], []
    for x, y, value in scattered(rng, int(rng.integers(8, 22)), area):
        radius = (0.9 + 3.4 * (y - area[1]) / (area[3] - area[1]) + value) * unit
        turn = value * 2
        petals += [
            disc(
                x + radius * np.cos(turn + k * 1.26),
                y + radius * 0.8 * np.sin(turn + k * 1.26),
                radius * 0.7,
            )
            for k in range(5)
        ]
        hearts.append(disc(x, y, radius * 0.6))
    stamp(picture, petals, colour)
    stamp(picture, hearts, (240, 180, 40) if colour[2] > 100 else (120, 70, 30))


def sunset(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw a low sun in a burning sky over water or dark hills."""
    unit = side / 256
    horizon = side * rng.uniform(0.52, 0.66)
    stops = (
        ((64, 44, 112), (196, 84, 116), (252, 146, 70), (255, 214, 120)),
        ((44, 56, 120), (150, 80, 140), (240, 110, 90), (255, 190, 100)),
        ((120, 46, 84), (228, 92, 62), (255, 160, 56), (255, 226, 130)),
    )[rng.integers(3)]
    picture = sky(rng, side, stops, horizon, 0)
    streaks = noise(rng, (side, side), (14, 3), 4, 0.6)
    picture.paste(mixed(stops[0], stops[1], 0.4), (0, 0), as_mask(streaks * 1.6 - 0.35))
    x, radius = rng.uniform(0.15, 0.85) * side, rng.uniform(15, 27) * unit
    y = horizon - radius * rng.uniform(-0.2, 1.4)
    for spread in (2.6, 1.8, 1.35):
        stamp(picture, [disc(x, y, radius * spread)], (255, 224, 140), 46)
    stamp(picture, [disc(x, y, radius)], (255, 244, 190))
    if rng.random() < 0.55:
        waves = receding(noise(rng, (256, 256), (36, 8), 3) * 0.5 + 0.5, (side, side), 5)
        path = np.exp(-(((np.arange(side, dtype=np.float32) - x) / np.float32(radius * 1.5)) ** 2))
        field = (waves - 0.5) * 0.8 + 0.3 + path * 0.5 * (waves * 1.2 + 0.1) - down(side) * 0.12
        land(
            picture,
            np.full(side, horizon, np.float32),
            coloured(field, (mixed(stops[0], (0, 0, 20), 0.5), stops[1], stops[2], stops[3])),
        )
        return picture
    dark = mixed(stops[0], (10, 6, 16), 0.72)
    land(
        picture, ridge(rng, side, horizon - 6 * unit, 22 * unit, 4, 4), mixed(dark, stops[2], 0.28)
    )
    field = noise(rng, (side, side), (30, 30), 3, 0.8) * 0.5 + 0.6 - down(side) * 0.3
    land(
        picture,
        ridge(rng, side, horizon + 16 * unit, 12 * unit, 3, 5),
        coloured(field, (mixed(dark, (0, 0, 0), 0.6), mixed(dark, stops[2], 0.2))),
    )
    return picture
