"""A golden table of what each cleaning leaves of a prompt."""

import pytest

from cascade.text import Cleaning, clean

GOLDEN: list[tuple[Cleaning, str, str]] = [
    ("none", "  A  Photo\tof\na Dog ", "A Photo of a Dog"),
    ("none", "a xyz123 dog", "a xyz123 dog"),
    ("lower", " A Photo of  TOK Dog", "a photo of tok dog"),
    ("lower", "a <new1> dog", "a <new1> dog"),
    # DreamBooth identifiers people use, as DeepFloyd IF's cleaner leaves them.
    ("deepfloyd", "a photo of xyz123 dog", "a photo of dog"),
    ("deepfloyd", "p3r5on", ""),
    ("deepfloyd", "abc1234", ""),
    ("deepfloyd", "<new1>", ""),
    ("deepfloyd", "TOK", "tok"),
    ("deepfloyd", "a sks dog", "a sks dog"),
    ("deepfloyd", "a 12ab34 dog", "a dog"),
    # Addresses, markup, handles, marks, quotes, dashes.
    ("deepfloyd", "a dog https://example.com/x?y=1 runs", "a dog runs"),
    ("deepfloyd", "a dog, www.example.org", "a dog"),
    ("deepfloyd", "a <b>red</b> dog", "a red dog"),
    ("deepfloyd", "a dog by @someone", "a dog by"),
    ("deepfloyd", "a [red] (big) {dog} | *cat* #12 ~", "a red big dog cat"),
    ("deepfloyd", "a dog &amp; a cat", "a dog a cat"),
    ("deepfloyd", "\u201ca dog\u2019s bone\u201d", "a dog's bone"),
    ("deepfloyd", "a black\u2014white dog", "a black-white dog"),
    # Ordinary prompts stay what they are.
    ("deepfloyd", "An oil painting of a dog, 1920s", "an oil painting of a dog, 1920s"),
    ("deepfloyd", "", ""),
]


@pytest.mark.parametrize(("cleaning", "prompt", "expected"), GOLDEN)
def test_golden_table(cleaning: Cleaning, prompt: str, expected: str) -> None:
    assert clean(prompt, cleaning) == expected


@pytest.mark.parametrize("prompt", [prompt for _, prompt, _ in GOLDEN])
def test_deepfloyd_is_settled_after_its_two_passes(prompt: str) -> None:
    once = clean(prompt, "deepfloyd")
    assert clean(once, "deepfloyd") == once


def test_markup_is_found_however_often_it_is_escaped() -> None:
    assert clean("a &lt;b&gt;dog&lt;/b&gt;", "deepfloyd") == "a dog"
    assert clean("a &amp;lt;b&amp;gt;dog", "deepfloyd") == "a dog"


def test_a_second_pass_removes_what_the_first_lays_bare() -> None:
    # Full-width letters become an address only when the first pass has normalised them.
    address = "".join(chr(ord(letter) + 0xFEE0) for letter in "www.example.org")
    assert clean(f"a dog {address}", "deepfloyd") == "a dog"
