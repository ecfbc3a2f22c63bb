"""In and on water, and far from any: the sea's floor, its surface, space."""

import numpy as np
from PIL import Image
from stencils import Polygon, disc, land, leaf, ridge, scattered, stamp
from texture import (
    Colour,
    coloured,
    contour,
    down,
    grain,
    mixed,
    noise,
    receding,
    varied,
)


def under_water(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw blue depths with beams of light, weeds, bubbles and a sandy bottom with caustics."""
    unit = side / 256
    blue = ((22, 120, 178), (14, 132, 160), (24, 96, 176))[rng.integers(3)]
    x = np.linspace(-1, 1, side, dtype=np.float32)
    rows = down(side)
    slant = (x - np.float32(rng.uniform(-0.5, 0.5))) / (0.35 + rows)
    comb = contour(rng, side * 4, 40, 2)
    beams = comb[np.clip((slant + 4) * (side / 2), 0, side * 4 - 1).astype(np.int32)]
    field = (
        0.92 - rows * 0.85 + beams * (1 - rows) * 0.28 + noise(rng, (side, side), (5, 5), 2) * 0.08
    )
    picture = coloured(
        field,
        (mixed(blue, (0, 16, 54), 0.72), blue, mixed(blue, (150, 236, 240), 0.7), (214, 250, 246)),
    )
    bottom = side * rng.uniform(0.72, 0.84)
    reef = ridge(rng, side, bottom - 12 * unit, 26 * unit, 5, 4)
    land(picture, reef, mixed(blue, (0, 24, 60), 0.55), 4 * unit)
    net = 1 - np.abs(noise(rng, (256, 256), (14, 14), 2)) * 3.2
    caustics = receding(np.clip(net, 0, 1), (side, side), 3)
    sand = mixed((214, 206, 160), blue, 0.42)
    bed = caustics * 0.45 + 0.42 + grain(rng, (side, side)) * 0.06 + (rows - 0.85) * 0.5
    land(
        picture,
        bottom + contour(rng, side, 3) * 6 * unit,
        coloured(bed, (mixed(sand, (0, 50, 90), 0.6), sand, mixed(sand, (240, 255, 230), 0.6))),
        4 * unit,
    )
    _reef(rng, picture, bottom)
    for bx, by, value in scattered(rng, int(rng.integers(10, 26)), (0, 0, side, side * 0.8)):
        radius = (1.4 + 4.6 * value**2) * unit
        stamp(picture, [disc(bx, by, radius)], (220, 248, 252), 110)
        stamp(
            picture,
            [disc(bx - radius * 0.3, by - radius * 0.3, radius * 0.4)],
            (255, 255, 255),
            220,
        )
    return picture


def _reef(rng: np.random.Generator, picture: Image.Image, bottom: float) -> None:
    side = picture.width
    for colour in ((36, 110, 74), (58, 140, 76), (224, 104, 110), (236, 150, 84)):
        x = side * (rng.uniform(0, 0.22) if rng.random() < 0.5 else rng.uniform(0.78, 1))
        foot = bottom + side * rng.uniform(0.03, 0.1)
        weeds: list[Polygon] = []
        coral = colour[0] > 100
        for angle in np.linspace(-2.3, -0.85, 7) if coral else np.linspace(-1.9, -1.2, 6):
            length = side * (rng.uniform(0.06, 0.12) if coral else rng.uniform(0.16, 0.36))
            weeds += leaf(
                x + side * 0.03 * (angle + 1.57),
                foot,
                length,
                angle,
                0.12 if coral else 0.05,
                rng.uniform(-0.6, 0.6),
            )
        stamp(picture, weeds, varied(rng, colour, 0.12))


def on_water(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw the rippled surface of a lake from above its middle, with a far shore or none."""
    unit = side / 256
    horizon = int(side * rng.uniform(0.0, 0.2))
    blue = varied(
        rng, ((38, 112, 170), (30, 128, 160), (60, 126, 176), (36, 92, 150))[rng.integers(4)], 0.08
    )
    pale = mixed(blue, (226, 244, 252), 0.72)
    ripples = noise(rng, (256, 256), (20, 12), 3, 0.55)
    crests = np.clip(1 - np.abs(ripples) * 2.6, 0, 1)
    seen = receding(crests * 0.55 + ripples * 0.25 + 0.22, (side - horizon, side), 4)
    field = seen * 0.85 + (1 - down(side - horizon)) * 0.22
    picture = Image.new("RGB", (side, side), mixed(pale, (255, 255, 255), 0.35))
    picture.paste(
        coloured(
            field, (mixed(blue, (0, 20, 60), 0.45), blue, mixed(blue, pale, 0.6), (246, 252, 255))
        ),
        (0, horizon),
    )
    if horizon > 8 * unit:
        shore = horizon - np.abs(contour(rng, side, 9, 4)) * 16 * unit - 2 * unit
        strip = picture.crop((0, horizon, side, side))
        land(picture, shore, mixed((70, 104, 84), pale, 0.3))
        picture.paste(strip, (0, horizon))
    return picture


def space(rng: np.random.Generator, side: int) -> Image.Image:
    """Draw stars, a nebula, and at times a planet with its shadow and ring."""
    unit = side / 256
    hue: Colour = ((120, 40, 160), (30, 80, 170), (170, 50, 110), (20, 120, 130))[rng.integers(4)]
    cloud = noise(rng, (side, side), (2, 2), 6, 0.6)
    veil = noise(rng, (side, side), (3, 3), 3)
    field = np.clip(cloud + 0.15, 0, 1) * np.clip(veil + 0.6, 0, 1) * 1.1
    picture = coloured(
        field,
        (
            (5, 5, 16),
            mixed((8, 8, 28), hue, 0.35),
            mixed((10, 10, 30), hue, 0.75),
            mixed(hue, (255, 200, 220), 0.6),
        ),
    )
    for radius, count, shine in ((0.55, 120, 190), (0.95, 50, 235), (1.6, 10, 255)):
        stars = [
            disc(x, y, radius * (0.7 + 0.6 * v) * unit)
            for x, y, v in scattered(rng, count, (0, 0, side, side))
        ]
        stamp(picture, stars, varied(rng, (250, 246, 240), 0.05), shine)
    for x, y, v in scattered(rng, 4, (0, 0, side, side)):
        long = (3 + 5 * v) * unit
        stamp(
            picture,
            [
                [(x - long, y), (x, y - 0.5), (x + long, y), (x, y + 0.5)],
                [(x, y - long), (x + 0.5, y), (x, y + long), (x - 0.5, y)],
            ],
            (255, 255, 255),
            220,
        )
    for _ in range(int(rng.integers(1, 3))):
        _planet(rng, picture, rng.uniform(14, 40) * unit)
    return picture


def _planet(rng: np.random.Generator, picture: Image.Image, radius: float) -> None:
    side = picture.width
    x, y = rng.uniform(0.05, 0.95) * side, rng.uniform(0.05, 0.6) * side
    body: Colour = (
        (206, 140, 84),
        (196, 84, 60),
        (92, 146, 206),
        (180, 170, 150),
        (120, 180, 150),
    )[rng.integers(5)]
    across = np.arange(side, dtype=np.float32)
    light = ((across - x) * -0.6 + (across[:, None] - y) * -0.5) / np.float32(radius) * 0.5 + 0.5
    bands = noise(rng, (side, side), (24, 3), 3)
    stamp(picture, [disc(x, y, radius * 1.12)], mixed(body, (255, 255, 255), 0.3), 50)
    stamp(
        picture,
        [disc(x, y, radius)],
        coloured(
            light + bands * 0.16,
            (mixed(body, (0, 0, 0), 0.88), body, mixed(body, (255, 250, 230), 0.6)),
        ),
    )
    if rng.random() < 0.4:
        outer, inner = disc(x, y, radius * 1.9, 0.3), disc(x, y, radius * 1.35, 0.3)
        middle = len(outer) // 2 + 1
        stamp(picture, [outer[:middle] + inner[:middle][::-1]], (222, 204, 170), 230)
