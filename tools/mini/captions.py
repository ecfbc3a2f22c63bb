"""Captions of composed pictures, exact, and labels that a machine can check."""

import re
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from scenes import COLOURS, SCENES
from sprites import Concept, Style

STYLES: Final[dict[Style, str]] = {
    "3d": "a 3d render of",
    "flat": "a flat drawing of",
    "cartoon": "a cartoon of",
    "photo": "a photo of",
}
ACCESSORIES: Final = {
    "crown": "wearing a crown",
    "scarf": "wearing a scarf",
    "sunglasses": "wearing sunglasses",
    "top hat": "wearing a top hat",
}
HUES: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
"""What a thing of one hue can be turned to."""

VARIANTS: Final = 4
_UNCOUNTED: Final = frozenset({"clothing", "food", "furniture"})
_PHRASES: Final = {scene.name: scene.phrases for scene in SCENES}
_ALONE: Final = {scene.name: scene.alone for scene in SCENES}


@dataclass(frozen=True)
class Labels:
    """Labels of a picture; None is nothing of the kind.

    Attributes:
        concept: name of the thing.
        style: how it is drawn.
        scene: a scene's name, or "blue background".
        colour: what its hue was turned to; None is its own.
        accessory: what it wears.
    """

    scene: str
    concept: str | None = None
    style: Style | None = None
    colour: str | None = None
    accessory: str | None = None


ATTRIBUTES: Final = ("concept", "style", "scene", "colour", "accessory")


@dataclass(frozen=True)
class View:
    """Position and size of a thing; None where there is nothing worth a word."""

    size: str | None = None  # "small" or "close-up"
    side: str | None = None  # "left" or "right"


def scene_names() -> tuple[str, ...]:
    """List all places a thing can be in: the scenes, then the plain grounds."""
    return (*_PHRASES, *(f"{colour} background" for colour in COLOURS))


def held_out(concept: str, style: Style, scene: str) -> bool:
    """Tell whether a combination is kept out of training: a third of all, fixed for ever."""
    return zlib.crc32(f"{concept}|{style}|{scene}".encode()) % 3 == 0


def prompt(labels: Labels) -> str:
    """Say everything that a picture shows, in the first wording of each."""
    if labels.concept is None:
        return scenery(labels.scene)[0]
    return _sentence(labels, labels.concept, View(), places(labels.scene)[0], styled=True)


def captions(
    labels: Labels, view: View, concept: Concept | None, rng: np.random.Generator
) -> tuple[str, ...]:
    """Return equally good captions of one picture.

    Colour and accessory are always said: a plain caption must not teach the network to invent them.
    Style, place, size and side are said or not, the broader nouns used now and then.
    """
    if concept is None:
        return scenery(labels.scene)
    said = [prompt(labels)]
    for _ in range(VARIANTS - 1):
        broader = concept.nouns and rng.random() < 0.25
        noun = str(rng.choice(concept.nouns)) if broader else concept.name
        place = str(rng.choice(places(labels.scene))) if rng.random() < 0.85 else ""
        seen = View(
            view.size if rng.random() < 0.5 else None, view.side if rng.random() < 0.5 else None
        )
        said.append(_sentence(labels, noun, seen, place, styled=rng.random() < 0.65))
    return tuple(dict.fromkeys(said))


def places(scene: str) -> tuple[str, ...]:
    """Return the wordings of a place behind the thing that is there, the usual one first."""
    return _PHRASES.get(scene) or (f"on {with_article(scene)}",)


def scenery(scene: str) -> tuple[str, ...]:
    """Return the name of an empty place."""
    alone = _ALONE.get(scene) or with_article(scene)
    return (alone, f"a picture of {alone}")


def with_article(phrase: str) -> str:
    """Put "a", "an" or, before a plural or what has none, nothing in front."""
    head = phrase.split(" wearing ")[0]
    if re.search(r"(?<![sui])s$", head) or head.split()[-1] in _UNCOUNTED:
        return phrase
    # Sound decides, not spelling: "a unicorn", "a European ...", but "an hourglass".
    vowel = re.match(r"(?!eu|uni)[aeiou]|hour", phrase)
    return f"{'an' if vowel else 'a'} {phrase}"


def _sentence(labels: Labels, noun: str, view: View, place: str, *, styled: bool) -> str:
    words = [labels.colour, noun, ACCESSORIES.get(labels.accessory or "")]
    if view.size == "small":
        words.insert(0, "small")
    phrase = with_article(" ".join(word for word in words if word))
    if view.size == "close-up":
        phrase = f"a close-up of {phrase}"
    elif styled and labels.style is not None:
        phrase = f"{STYLES[labels.style]} {phrase}"
    side = f"on the {view.side}" if view.side else ""
    return " ".join(part for part in (phrase, place, side) if part)
