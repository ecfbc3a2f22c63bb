"""The places of the small world: what each is called, and how it is drawn.

A picture is a function of the generator alone. Scenes are drawn with detail for 256 pixels and
stay recognisable at 64. Wordings follow DreamBooth's evaluation prompts where these have the place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boards import pink_fabric, table, wooden_floor
from heights import mountains, snow
from land import desert, meadow
from rooms import living_room
from skies import space, sunset
from texture import Colour, coloured, mixed, noise
from town import city, cobbles, night_city
from water import beach, on_water, under_water
from woods import autumn, forest, jungle

Pixels = NDArray[np.uint8]  # H W 3

COLOURS: Final[Mapping[str, Colour]] = {
    "red": (200, 40, 40),
    "orange": (236, 130, 32),
    "yellow": (242, 212, 58),
    "green": (60, 152, 68),
    "blue": (48, 96, 196),
    "purple": (122, 60, 166),
    "pink": (240, 152, 190),
    "brown": (118, 72, 42),
    "white": (240, 240, 238),
    "black": (20, 20, 22),
    "grey": (130, 130, 130),
}


@dataclass(frozen=True)
class Scene:
    """A place: its name, what is said after a thing in it, and its picture.

    `stand` says where a thing's lowest point may be, as fractions of the height from the top.
    """

    name: str
    phrases: tuple[str, ...]  # the first is the usual one
    alone: str  # the empty place itself
    stand: tuple[float, float]
    draw: Callable[[np.random.Generator, int], Pixels]


def _pixels(
    paint: Callable[[np.random.Generator, int], Image.Image],
) -> Callable[[np.random.Generator, int], Pixels]:
    def draw(rng: np.random.Generator, side: int) -> Pixels:
        return np.array(paint(rng, side))

    return draw


SCENES: Final = (
    Scene(
        "beach",
        ("on the beach", "on a sandy beach", "at the beach"),
        "a beach",
        (0.72, 0.98),
        _pixels(beach),
    ),
    Scene(
        "snow",
        ("in the snow", "in deep snow", "on snowy ground"),
        "snow",
        (0.68, 0.98),
        _pixels(snow),
    ),
    Scene(
        "mountains",
        ("with a mountain in the background", "in the mountains", "in front of a mountain"),
        "mountains",
        (0.78, 0.98),
        _pixels(mountains),
    ),
    Scene(
        "forest",
        ("in the forest", "in a forest", "in the woods"),
        "a forest",
        (0.78, 0.98),
        _pixels(forest),
    ),
    Scene(
        "jungle",
        ("in the jungle", "in a jungle", "in the rainforest"),
        "a jungle",
        (0.84, 0.98),
        _pixels(jungle),
    ),
    Scene(
        "desert",
        ("in the desert", "in a sandy desert", "on a sand dune"),
        "a desert",
        (0.62, 0.98),
        _pixels(desert),
    ),
    Scene(
        "meadow",
        ("on the grass", "on top of green grass", "in a meadow with flowers"),
        "a meadow",
        (0.6, 0.98),
        _pixels(meadow),
    ),
    Scene(
        "space",
        ("in space", "in outer space", "among the stars"),
        "space",
        (0.5, 0.98),
        _pixels(space),
    ),
    Scene(
        "city",
        ("with a city in the background", "in the city", "in front of a city"),
        "a city",
        (0.82, 0.98),
        _pixels(city),
    ),
    Scene(
        "night city",
        ("in the city at night", "with a city at night in the background", "in a city at night"),
        "a city at night",
        (0.8, 0.98),
        _pixels(night_city),
    ),
    Scene(
        "street",
        ("on a cobblestone street", "on a cobbled street", "on cobblestones"),
        "a cobblestone street",
        (0.58, 0.98),
        _pixels(cobbles),
    ),
    Scene(
        "table",
        ("on a wooden table", "on top of a wooden table", "on a table"),
        "a wooden table",
        (0.6, 0.98),
        _pixels(table),
    ),
    Scene(
        "wooden floor",
        ("on top of a wooden floor", "on a wooden floor", "on the floor"),
        "a wooden floor",
        (0.5, 0.98),
        _pixels(wooden_floor),
    ),
    Scene(
        "living room",
        ("in a living room", "in the living room", "in a room with a sofa"),
        "a living room",
        (0.78, 0.98),
        _pixels(living_room),
    ),
    Scene(
        "pink fabric",
        ("on top of pink fabric", "on pink fabric", "on a pink cloth"),
        "pink fabric",
        (0.6, 0.98),
        _pixels(pink_fabric),
    ),
    Scene(
        "under water",
        ("under water", "under the sea", "at the bottom of the sea"),
        "the bottom of the sea",
        (0.6, 0.96),
        _pixels(under_water),
    ),
    Scene(
        "water",
        ("floating on top of water", "floating on water", "on the water"),
        "water",
        (0.5, 0.92),
        _pixels(on_water),
    ),
    Scene(
        "sunset",
        ("at sunset", "with a sunset in the background", "in front of a sunset"),
        "a sunset",
        (0.74, 0.98),
        _pixels(sunset),
    ),
    Scene(
        "autumn",
        (
            "with a tree and autumn leaves in the background",
            "among autumn leaves",
            "on autumn leaves",
        ),
        "autumn leaves",
        (0.72, 0.98),
        _pixels(autumn),
    ),
)


def plain(rng: np.random.Generator, colour_name: str, side: int) -> Pixels:
    """Draw a softly lit ground of one of the `COLOURS`, named with certainty: `side side 3`."""
    colour = COLOURS[colour_name]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.3)
    x = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    slope = x * np.float32(np.cos(angle)) + x[:, None] * np.float32(np.sin(angle))
    field = 0.5 + slope * np.float32(strength) + noise(rng, (side, side), (2, 2), 2) * 0.08
    shift = np.float32(rng.uniform(-0.08, 0.08))
    dark, light = mixed(colour, (0, 0, 0), 0.3), mixed(colour, (255, 255, 255), 0.3)
    return np.array(coloured(field + shift, (dark, colour, light)))
