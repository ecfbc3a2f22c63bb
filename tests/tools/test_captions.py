"""Captions say what the label, the box and the pixels show, and nothing else."""

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

WHOLE = (0, 0, 31, 31)
MIDDLE = (8, 8, 23, 23)


@pytest.fixture
def captions(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script beside its neighbours, as `python tools/pretrain/prepare.py` sees it."""
    monkeypatch.syspath_prepend(str(repository / "tools" / "pretrain"))
    yield importlib.import_module("captions")
    sys.modules.pop("captions", None)


def _photo(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    return np.full((32, 32, 3), (red, green, blue), dtype=np.uint8)


def _said(captions: ModuleType, subject: object, pixels: object, box: object) -> Counter[str]:
    return Counter(
        caption
        for index in range(1000)
        for caption in captions.captions_of(subject, pixels, box, index)
    )


def test_is_a_function_of_the_index(captions: ModuleType) -> None:
    dog = captions.subject_of("n02085620", "Chihuahua", "Chihuahua", "dog")
    first = captions.captions_of(dog, _photo(120, 120, 160), MIDDLE, 7)
    assert len(first) == 4
    assert first == captions.captions_of(dog, _photo(120, 120, 160), MIDDLE, 7)
    assert any(
        captions.captions_of(dog, _photo(120, 120, 160), MIDDLE, index) != first
        for index in range(20)
    )


def test_breeds_are_called_dog_four_times_in_ten(captions: ModuleType) -> None:
    dog = captions.subject_of("n02085620", "Chihuahua", "Chihuahua", "dog")
    said = _said(captions, dog, _photo(120, 120, 140), MIDDLE)
    assert set(said) == {
        "a dog",
        "a Chihuahua",
        "a Chihuahua dog",
        "a photo of a dog",
        "a photo of a Chihuahua",
        "a photo of a Chihuahua dog",
    }
    coarse = sum(count for caption, count in said.items() if caption.endswith("dog")) / said.total()
    # 4,000 draws of probability 0.4: five standard deviations are 0.04.
    assert abs(coarse - 0.4) < 0.04


def test_names_are_the_first_seven_times_in_ten(captions: ModuleType) -> None:
    goods = captions.subject_of("n02769748", "backpack", "backpack|rucksack|knapsack", "")
    said = _said(captions, goods, _photo(120, 120, 140), MIDDLE)
    first = sum(count for caption, count in said.items() if "backpack" in caption) / said.total()
    assert abs(first - 0.7) < 0.04  # as above
    assert {"a rucksack", "a knapsack"} <= set(said)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (WHOLE, "close-up of"),
        ((14, 14, 20, 20), "small"),
        ((0, 8, 12, 23), "on the left"),
        ((20, 8, 31, 23), "on the right"),
    ],
)
def test_remarks_on_the_box(captions: ModuleType, box: tuple[int, ...], words: str) -> None:
    lion = captions.subject_of("n02129165", "lion", "lion", "")
    with_words = list(_said(captions, lion, _photo(120, 120, 140), box))
    assert any(words in caption for caption in with_words)
    assert not all(words in caption for caption in with_words)
    assert not any(
        words in caption for caption in _said(captions, lion, _photo(120, 120, 140), MIDDLE)
    )


@pytest.mark.parametrize(
    ("rgb", "colour"),
    [
        ((200, 20, 20), "red"),
        ((230, 130, 20), "orange"),
        ((110, 65, 30), "brown"),
        ((230, 220, 30), "yellow"),
        ((30, 160, 40), "green"),
        ((30, 60, 200), "blue"),
        ((140, 30, 190), "purple"),
        ((240, 90, 170), "pink"),
        ((250, 250, 245), "white"),
        ((20, 22, 25), "black"),
        ((120, 120, 130), None),
    ],
)
def test_colour(captions: ModuleType, rgb: tuple[int, int, int], colour: str | None) -> None:
    assert captions.dominant_colour(_photo(*rgb)) == colour


def test_colour_needs_more_than_half_of_the_pixels(captions: ModuleType) -> None:
    pixels = _photo(200, 20, 20)
    pixels[:16] = (30, 60, 200)
    assert captions.dominant_colour(pixels) is None
    pixels[16] = (30, 60, 200)
    assert captions.dominant_colour(pixels) == "blue"
    assert captions.dominant_colour(pixels[:0]) is None


def test_grey_photos_are_always_called_so(captions: ModuleType) -> None:
    lion = captions.subject_of("n02129165", "lion", "lion|king of beasts|Panthera leo", "")
    said = _said(captions, lion, _photo(90, 90, 90), WHOLE)
    assert said
    assert all(caption.startswith("a black and white photo of a ") for caption in said)


def test_no_scientific_or_misleading_names(captions: ModuleType) -> None:
    cat = captions.subject_of("n02125311", "cougar", "cougar|puma|painter|Felis concolor", "")
    assert cat.synonyms == ("puma",)
    dog = captions.subject_of("n02106662", "German shepherd", "German shepherd|alsatian", "dog")
    assert dog.synonyms == ("alsatian",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["umbrella"], "an umbrella"),
        (["red", "umbrella"], "a red umbrella"),
        (["hourglass"], "an hourglass"),
        (["European", "salamander"], "a European salamander"),
        (["unicycle"], "a unicycle"),
        (["iPod"], "an iPod"),
    ],
)
def test_articles(captions: ModuleType, words: list[str], expected: str) -> None:
    assert captions.with_article(words) == expected


def test_plurals_take_no_article(captions: ModuleType) -> None:
    glasses = captions.subject_of("n04356056", "sunglasses", "sunglasses|shades", "glasses")
    said = _said(captions, glasses, _photo(120, 120, 140), MIDDLE)
    assert set(said) == {"sunglasses", "glasses", "a photo of sunglasses", "a photo of glasses"}
