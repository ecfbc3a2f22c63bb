"""Captions for labelled photos, without a captioning model.

What a photo shows is known from its class; how it shows it (close-up, colour, place in the frame)
is measured from the pixels and the object's box. Every photo gets several variants, so that the
base model learns the breed, the coarse class noun DreamBooth needs ("dog") and plain wording alike.
Empty captions for classifier-free guidance are drawn by the trainer, not stored here.

Shapes: pixels `H W 3` uint8, box `(left, top, right, bottom)` in pixels, both ends included.
"""

import random
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from boxes import Box, area

Pixels: TypeAlias = NDArray[np.uint8]

VARIANTS: Final = 4
FIRST_NAME: Final = 0.7  # share of captions that use the class's first name rather than a synonym
HYPERNYM: Final = 0.4  # share that say the coarse noun ("a dog", "a Chihuahua dog")
QUALIFIER: Final = 0.5  # a true remark on size, colour or place is made half of the time

# The coarse nouns a person would use, where the class table names none or another word is usual.
COARSE_NOUNS: Final[dict[str, tuple[str, ...]]] = {
    "n02056570": ("penguin",),
    "n02132136": ("bear",),
    "n02504458": ("elephant",),
    "n02509815": ("panda",),
    "n02823428": ("bottle",),
    "n02883205": ("tie",),
    "n02917067": ("train",),
    "n03770439": ("skirt",),
    "n03930313": ("fence",),
    "n03983396": ("bottle",),
    "n04099969": ("chair",),
    "n04118538": ("ball",),
    "n04133789": ("shoe",),
    "n04146614": ("bus",),
    "n04259630": ("hat",),
    "n04285008": ("car",),
    "n04328186": ("clock", "watch"),
    "n04366367": ("bridge",),
    "n04399382": ("stuffed animal", "toy"),
    "n04532670": ("bridge",),
    "n04540053": ("ball",),
    "n04560804": ("jug",),
    "n07720875": ("pepper",),
    "n07920052": ("cup of coffee",),
    "n09193705": ("mountain",),
    "n09332890": ("lake",),
    "n09428293": ("beach",),
}
SCENERY: Final = frozenset({"n09193705", "n09246464", "n09332890", "n09428293", "n03160309"})
# WordNet synonyms that mean something else to anybody who reads them alone.
MISLEADING: Final = frozenset(
    {"painter", "bullet", "mini", "drop", "board", "shades", "black Maria", "bear cat", "cat bear"}
)
PLURAL: Final = frozenset({"glasses", "sunglasses", "dark glasses", "trunks"})
BINOMIAL: Final = re.compile(r"[A-Z][a-z]+ [a-z]+")
DOG_BREEDS: Final = ("n02085620", "n02113978")  # first and last breed among ImageNet's 1000 classes
CAT_BREEDS: Final = ("n02123045", "n02124075")

# Upper ends of the hue bands, degrees; the circle closes with red again.
HUES: Final = (
    (15.0, "red"),
    (45.0, "orange"),
    (70.0, "yellow"),
    (165.0, "green"),
    (260.0, "blue"),
    (300.0, "purple"),
    (340.0, "pink"),
    (360.0, "red"),
)


@dataclass(frozen=True)
class Subject:
    """What a class is called: its first name, its synonyms and the coarse nouns above it."""

    name: str
    synonyms: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    scenery: bool = False
    article: bool = True  # False for groceries and plurals ("a photo of vanilla yoghurt")


@dataclass(frozen=True)
class View:
    """How one photo shows its subject; None where there is nothing worth a remark."""

    grey: bool = False
    size: str | None = None  # "close-up" or "small"
    side: str | None = None  # "left" or "right"
    colour: str | None = None


def subject_of(wnid: str, name: str, synonyms: str, noun: str) -> Subject:
    """Return the names of a class from one row of the class table (synonyms parted by `|`)."""
    others = [other for other in synonyms.split("|") if other not in MISLEADING | {name}]
    # WordNet puts the scientific name last; nobody prompts with it.
    if others and BINOMIAL.fullmatch(others[-1]) and wnid < "n0267":
        others.pop()
    nouns = COARSE_NOUNS.get(wnid) or ((noun,) if noun else coarse_noun(wnid))
    return Subject(name, tuple(others), nouns, wnid in SCENERY)


def coarse_noun(wnid: str) -> tuple[str, ...]:
    """Return `("dog",)` or `("cat",)` for ImageNet's breeds, nothing for other classes."""
    if DOG_BREEDS[0] <= wnid <= DOG_BREEDS[1]:
        return ("dog",)
    if CAT_BREEDS[0] <= wnid <= CAT_BREEDS[1]:
        return ("cat",)
    return COARSE_NOUNS.get(wnid, ())


def captions_of(
    subject: Subject,
    pixels: Pixels,
    box: Box,
    index: int,
    place: str = "",
    count: int = VARIANTS,
) -> list[str]:
    """Return `count` captions of one photo; a pure function of its arguments.

    Args:
        subject: the names of the class.
        pixels: H W 3, uint8.
        box: the object's box in pixels.
        index: the photo's place in its dataset; seeds the wording.
        place: where a composed picture shows its subject ("on the beach"); always said.
        count: how many variants.
    """
    random_ = random.Random(index)
    view = view_of(pixels, box)
    captions = [_caption(subject, view, random_, bool(place)) for _ in range(count)]
    return [f"{caption} {place}" for caption in captions] if place else captions


def view_of(pixels: Pixels, box: Box) -> View:
    """Measure how a photo shows the object inside `box`."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    covered = area(box) / (height * width)
    centre = (left + right + 1) / 2 / width
    size = "close-up" if covered > 0.60 else "small" if covered < 0.15 else None
    side = "left" if centre < 1 / 3 else "right" if centre > 2 / 3 else None
    grey = is_grey(pixels)
    inside = pixels[top : bottom + 1, left : right + 1]
    return View(grey, size, side, None if grey else dominant_colour(inside))


def is_grey(pixels: Pixels) -> bool:
    """Tell a black-and-white photo: the channels differ by under 3 grey levels on average."""
    spread = pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)
    return bool(spread.mean() < 3)


def dominant_colour(pixels: Pixels) -> str | None:
    """Return the colour name that holds more than half of the pixels, if one does."""
    if pixels.size == 0:
        return None
    rgb: NDArray[np.float32] = pixels.reshape(-1, 3).astype(np.float32) / np.float32(255)
    value, low = rgb.max(axis=1), rgb.min(axis=1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    hue = _hue(rgb, value, chroma)
    names = np.array([name for _, name in HUES])
    colour = names[np.minimum(np.searchsorted([end for end, _ in HUES], hue), len(HUES) - 1)]
    # Dark orange is what people call brown.
    colour = np.where((hue < 45) & (hue >= 8) & (value < 0.65), "brown", colour)
    colour = np.where(saturation < 0.25, "", colour)
    colour = np.where((saturation < 0.15) & (value > 0.80), "white", colour)
    colour = np.where(value < 0.20, "black", colour)
    found, counts = np.unique(colour, return_counts=True)
    best = int(counts.argmax())
    return str(found[best]) or None if counts[best] > len(rgb) / 2 else None


def with_article(words: list[str]) -> str:
    """Join the words with "a" or "an" in front."""
    phrase = " ".join(words)
    # Sound decides, not spelling: "a European ...", "a unicycle", but "an hourglass".
    vowel = re.match(r"(?i)(?!eu|uni)[aeiou]|hour", phrase)
    return f"{'an' if vowel else 'a'} {phrase}"


def is_plural(noun: str) -> bool:
    """Tell the few names here that take no article."""
    return noun in PLURAL or noun.split()[-1] in PLURAL


def _hue(
    rgb: NDArray[np.float32], value: NDArray[np.float32], chroma: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Hue in degrees; zero for greys. `rgb` is N 3, the others N."""
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1e-6)
    sextant = np.where(
        value == red,
        ((green - blue) / safe) % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return np.asarray(np.where(chroma > 0, sextant * 60, 0), dtype=np.float32)


def _name(subject: Subject, random_: random.Random) -> str:
    name = subject.name
    if subject.synonyms and random_.random() > FIRST_NAME:
        name = random_.choice(subject.synonyms)
    if not subject.nouns or random_.random() > HYPERNYM:
        return name
    noun = random_.choice(subject.nouns)
    # A third of the coarse captions join both names ("a Chihuahua dog"), which ties them together.
    breed = noun in ("dog", "cat") and noun not in name.lower().split()
    return f"{name} {noun}" if breed and random_.random() < 1 / 3 else noun


def _caption(subject: Subject, view: View, random_: random.Random, placed: bool) -> str:
    noun = _name(subject, random_)
    said = [random_.random() < QUALIFIER for _ in range(4)]
    about_size = said[0] and not subject.scenery
    words = [noun]
    if said[1] and view.colour and view.colour not in noun.lower():
        words.insert(0, view.colour)
    if about_size and view.size == "small":
        words.insert(0, "small")
    phrase = with_article(words) if subject.article and not is_plural(noun) else " ".join(words)
    if view.grey:
        # Always said: a plain caption must not teach the model to answer without colour.
        phrase = f"a black and white photo of {phrase}"
    elif about_size and view.size == "close-up":
        phrase = f"a close-up of {phrase}"
    elif said[2]:
        phrase = f"a photo of {phrase}"
    if said[3] and view.side and not subject.scenery and not placed:
        phrase = f"{phrase} on the {view.side}"
    return phrase
