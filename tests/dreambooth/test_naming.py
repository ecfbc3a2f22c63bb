"""What a subject is called: never what another is, never what the encoder does not see."""

from pathlib import Path
from typing import Any

import pytest

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.recipes import RECIPES
from cascade.config.stage import SubjectConfig, TextConfig
from cascade.dreambooth.naming import fill, require_kept, require_named, settle_names
from cascade.errors import UserError
from cascade.text.tokenizer import Tokenizer

TEXT = TextConfig(max_length=16, cleaning="lower")
ZUG = SubjectConfig(identifier="zug", class_noun="dog")


@pytest.fixture
def tokenizer(tiny_cascade: Path) -> Tokenizer:
    return Tokenizer(tiny_cascade / "text" / "spiece.model")


def _config(**changes: Any) -> DreamBoothConfig:
    values: dict[str, Any] = {
        "cascade": "mini",
        "instance_data_dir": Path("photos"),
        "output_dir": Path("new"),
        "class_noun": "dog",
        "recipe": RECIPES["paper"],
    }
    return DreamBoothConfig.model_validate(values | changes)


def test_a_second_subject_gets_a_name_of_its_own(tokenizer: Tokenizer) -> None:
    known: list[SubjectConfig] = []
    for _ in range(5):
        known.append(settle_names(_config(), [TEXT], known, tokenizer))
    assert len({subject.identifier for subject in known}) == 5
    first = known[0].identifier
    assert settle_names(_config(identifier=first), [TEXT], known, tokenizer) == known[0]
    with pytest.raises(UserError, match=f"calls a dog '{first}' already"):
        settle_names(_config(identifier=first, class_noun="cat"), [TEXT], known, tokenizer)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"class_noun": " "}, "class noun is empty"),
        ({"class_noun": "x" * 101}, "class_noun: .*at most 100 characters"),
        ({"class_noun": "a dog"}, "begins with an article; give 'dog'"),
        ({"class_noun": "The dog"}, "begins with an article; give 'dog'"),
        ({"identifier": "dog"}, "is the class noun itself"),
        ({"identifier": " "}, "identifier is empty"),
    ],
)
def test_names_that_cannot_work(tokenizer: Tokenizer, changes: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        settle_names(_config(**changes), [TEXT], [], tokenizer)


def test_a_common_word_is_told(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    settle_names(_config(identifier="cat"), [TEXT], [], tokenizer)
    assert "'cat' is a common word" in caplog.text
    caplog.clear()
    settle_names(_config(), [TEXT], [], tokenizer)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("a {identifier} {class_noun}", "a zug dog"),
        ("{class_noun}{identifier}", "dogzug"),
        ("a dog", "a dog"),
    ],
)
def test_only_the_two_names_are_put_in(template: str, prompt: str) -> None:
    assert fill(template, ZUG) == prompt
    odd = SubjectConfig(identifier="{class_noun}", class_noun="dog")  # put in as it is
    assert fill("a {identifier} {class_noun}", odd) == "a {class_noun} dog"


@pytest.mark.parametrize(
    "template",
    [
        "a {v} dog",
        "a {} dog",
        "a {identifier",
        "a } dog",
        "a {identifier.x} dog",
        "a {identifier:>99999999999} dog",
        "a {identifier!r} dog",
        "a {0} dog",
        "a {{identifier}} dog",
    ],
)
def test_any_other_brace_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="has a placeholder that is not known"):
        fill(template, ZUG)


@pytest.mark.parametrize("prompt", ["a zug dog", "photo of zug, a dog", "Zug dog"])
def test_the_identifier_is_found_by_its_tokens(tokenizer: Tokenizer, prompt: str) -> None:
    require_named(prompt, ZUG, TEXT, tokenizer)


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("a photo of sks dog", "or give --identifier sks if"),
        ("a dog", r"as a word of its own\.$"),
        ("a photo of the beach", r"as a word of its own\.$"),
    ],
)
def test_a_prompt_that_does_not_name_it_says_what_would(
    tokenizer: Tokenizer, prompt: str, hint: str
) -> None:
    with pytest.raises(UserError, match=hint):
        require_named(prompt, ZUG, TEXT, tokenizer)


@pytest.mark.parametrize(
    ("prompt", "noun"),
    [("a dog " * 9 + "zug", "dog"), ("zug " + "a cat " * 9 + "dog", "dog"), ("a zug 猫", "猫")],
)
def test_prompts_whose_names_are_lost_are_refused(
    tokenizer: Tokenizer, prompt: str, noun: str
) -> None:
    called = SubjectConfig(identifier="zug", class_noun=noun)
    with pytest.raises(UserError, match=r"the encoder would not see '(zug|dog|猫)'"):
        require_kept([prompt], called, [TEXT], tokenizer)
    require_kept(["a zug dog"], ZUG, [TEXT], tokenizer)
