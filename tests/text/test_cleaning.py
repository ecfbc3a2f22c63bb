"""What each cleaning leaves of a prompt; DeepFloyd IF's is compared with its own pipeline."""

import json
import warnings
from pathlib import Path

import pytest
from diffusers import IFPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.config.stage import Cleaning
from cascade.errors import UserError
from cascade.text.cleaning import clean, names_side

# Pairs of a caption and what IFPipeline's two passes make of it (diffusers 0.42.1, Beautiful Soup
# 4.15.0, ftfy 6.3.1). There are no deliberate differences.
GOLDEN: list[tuple[str, str]] = [
    (caption, cleaned)
    for caption, cleaned in json.loads(
        (Path(__file__).parent / "golden_deepfloyd.json").read_text(encoding="utf-8")
    )
]
# Pieces that the rules look for; a random caption without them would meet none.
PIECES = (
    "https:// www: example.com foo.it/ a@b.com @nick <b> </b> <person> &amp; &lt; &quot; 東京 — - "
    "_ \u201cq\u201d \u2018a\u2019 ` \" ' 192.168.0.1 1:23 \\n #12 #12345 123456 cat.jpg png "
    "images .. . , ; : + ? ( ] | / * ™ jc6640 jc6640vc 66vc23 j2d1a free shipping download click "
    "on page 12 20x30 a dog RED İ \ufb01 Ã© â€™ \u200b \x1b[31m \x00 %20 x:y x : y a/b it's"
)


@pytest.mark.parametrize(
    ("cleaning", "prompt", "expected"),
    [
        ("none", "  A  Photo\tof\na Dog ", "A Photo of a Dog"),
        ("none", "a xyz123 dog", "a xyz123 dog"),
        ("lower", " A Photo of  TOK Dog", "a photo of tok dog"),
        ("lower", "a <new1> dog", "a <new1> dog"),
    ],
)
def test_simple_cleanings(cleaning: Cleaning, prompt: str, expected: str) -> None:
    assert clean(prompt, cleaning) == expected


@pytest.mark.parametrize(("caption", "cleaned"), GOLDEN)
def test_golden_table(caption: str, cleaned: str) -> None:
    assert clean(caption, "deepfloyd") == cleaned


def test_the_golden_table_is_long_and_has_no_pair_twice() -> None:
    assert len({caption for caption, _ in GOLDEN}) == len(GOLDEN) > 100


@settings(max_examples=300)
@given(
    st.lists(st.one_of(st.sampled_from(PIECES.split(" ")), st.text(max_size=4)), max_size=8),
    st.lists(st.sampled_from(["", " ", "  "]), min_size=8, max_size=8),
)
def test_any_caption_is_cleaned_as_by_the_pipeline(pieces: list[str], gaps: list[str]) -> None:
    caption = "".join(a + b for a, b in zip(pieces, gaps, strict=False))
    assert clean(caption, "deepfloyd") == _reference(_reference(caption))


def _reference(caption: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Beautiful Soup's, of captions that look like paths
        return str(IFPipeline._clean_caption(IFPipeline, caption))


@pytest.mark.parametrize("text", ["dog \udcff", "\ud800", "a\udfffb"])
def test_bytes_that_are_no_text_are_refused_wherever_prompts_go(text: str) -> None:
    for cleaning in ("none", "lower", "deepfloyd"):
        with pytest.raises(UserError, match="bytes that are no text"):
            clean(text, cleaning)


def test_sides() -> None:
    named = ("a dog on the left", "Right of a tree", "the leftmost cup", "a right-hand glove")
    plain = (None, "a dog", "a bright cup", "leftovers on a plate", "a copyright sign")
    assert [names_side(prompt) for prompt in (*named, *plain)] == [True] * 4 + [False] * 5
