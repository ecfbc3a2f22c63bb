"""Identifiers survive cleaning and stay one token."""

import re
from pathlib import Path

import pytest

from cascade.config.stage import Cleaning
from cascade.errors import UserError
from cascade.text.cleaning import clean
from cascade.text.identifier import check_identifier, find_identifiers, rare_range
from cascade.text.tokenizer import Tokenizer


def test_draw_from_a_small_vocabulary(tokenizer: Tokenizer) -> None:
    found = find_identifiers(tokenizer, "lower", 2, seed=3, lowest=3, highest=len(tokenizer) - 1)
    assert found == find_identifiers(tokenizer, "lower", 2, 3, 3, len(tokenizer) - 1)
    assert len(set(found)) == 2
    for identifier in found:
        assert len(tokenizer.ids(identifier)) == 1
        check_identifier(tokenizer, "lower", identifier, "thing")


def test_range_of_a_small_vocabulary_is_its_last_tenth(tokenizer: Tokenizer) -> None:
    size = len(tokenizer)
    assert rare_range(tokenizer) == (size - size // 10, size - 1)


def test_impossible_draws(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="usable identifiers"):
        find_identifiers(tokenizer, "none", 10_000, seed=0)
    with pytest.raises(UserError, match="not in the vocabulary"):
        find_identifiers(tokenizer, "none", 1, seed=0, lowest=5000, highest=10_000)


@pytest.mark.parametrize("cleaning", ["none", "lower", "deepfloyd"])
def test_draw_from_t5(shared_data: Path, cleaning: Cleaning) -> None:
    tokenizer = Tokenizer(shared_data / "data" / "t5" / "spiece.model")
    assert rare_range(tokenizer) == (5000, 10000)
    for identifier in find_identifiers(tokenizer, cleaning, 50, seed=0):
        assert re.fullmatch(r"[^\W\d_]{1,3}", identifier)
        (index,) = tokenizer.ids(identifier)
        assert 5000 <= index <= 10000
        assert index in tokenizer.ids(clean(f"a photo of a {identifier} dog", cleaning))
    assert find_identifiers(tokenizer, cleaning, 5, 0) != find_identifiers(
        tokenizer, cleaning, 5, 1
    )


@pytest.mark.parametrize(
    ("identifier", "cleaning", "message"),
    [
        ("xyz123", "deepfloyd", "deletes or mangles .*becomes 'a dog'"),
        ("<new1>", "deepfloyd", "deletes or mangles"),
        ("[v]", "deepfloyd", None),
        ("", "none", "empty"),
        ("xxyysyttoo", "none", r"split into \d+ pieces"),
        ("日本", "none", "does not know"),
        ("dog", "none", "is the class noun itself"),
        ("Dog", "lower", "is the class noun itself"),
        ("cat", "none", None),
    ],
)
def test_check(
    tokenizer: Tokenizer, identifier: str, cleaning: Cleaning, message: str | None
) -> None:
    if message is None:
        check_identifier(tokenizer, cleaning, identifier, "dog")
        return
    with pytest.raises(UserError, match=message):
        check_identifier(tokenizer, cleaning, identifier, "dog")
