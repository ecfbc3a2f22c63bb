"""What of a prompt never reaches the network is found and said."""

import pytest

from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.text.cleaning import Cleaning, clean
from cascade.text.lost import lost_words, tell_lost
from cascade.text.side import names_side
from cascade.text.tokenizer import Tokenizer

TEXT = TextConfig(max_length=16)

VERY = "very " * 40 + "red car"


@pytest.mark.parametrize("limit", range(1, 16))
def test_what_is_kept_fits_and_one_word_more_does_not(tokenizer: Tokenizer, limit: int) -> None:
    prompt = "a dog on the beach with a ball in the snow"
    words = prompt.split()
    cut = lost_words(tokenizer, prompt, TextConfig(max_length=limit)).cut
    kept = words[: len(words) - len(cut)]
    assert [*kept, *cut] == words
    assert len(tokenizer.ids(" ".join(kept))) < max(limit, 1)
    if cut:
        assert len(tokenizer.ids(" ".join([*kept, cut[0]]))) >= limit


@pytest.mark.parametrize("cleaning", ["none", "lower", "deepfloyd"])
def test_a_prompt_that_is_whole_has_lost_nothing(tokenizer: Tokenizer, cleaning: Cleaning) -> None:
    for prompt in ("", "a dog", "a dog on the beach"):
        assert not lost_words(tokenizer, prompt, TextConfig(max_length=77, cleaning=cleaning))


def test_words_in_no_vocabulary_are_named(tokenizer: Tokenizer) -> None:
    lost = lost_words(tokenizer, "a 猫 dog", TextConfig(max_length=77))
    assert (lost.cut, lost.unknown) == ((), ("猫",))
    assert "vocabulary lacks, '猫'" in str(lost)


def test_each_prompt_is_told_and_many_are_counted(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tell_lost(tokenizer, ["a dog", VERY, "a 猫"], TEXT)
    told = caplog.messages
    assert len(told) == 2
    assert "red car" in told[0] or "very" in told[0]
    assert "(16 tokens are kept)" in told[0]
    caplog.clear()
    tell_lost(
        tokenizer,
        [VERY, *(f"a dog {number}" for number in range(30)), "a 猫"],
        TEXT,
    )
    (line,) = caplog.messages
    assert line.startswith("Of 32 captions 1 are too long (16 tokens are kept) and 1 have words")
    caplog.clear()
    tell_lost(tokenizer, ["a dog"], TEXT)
    assert caplog.messages == []


@pytest.mark.parametrize("text", ["dog \udcff", "\ud800", "a\udfffb"])
def test_bytes_that_are_no_text_are_refused_wherever_prompts_go(text: str) -> None:
    for cleaning in ("none", "lower", "deepfloyd"):
        with pytest.raises(UserError, match="bytes that are no text"):
            clean(text, cleaning)


def test_sides() -> None:
    named = ("a dog on the left", "Right of a tree", "the leftmost cup", "a right-hand glove")
    plain = (None, "a dog", "a bright cup", "leftovers on a plate", "a copyright sign")
    assert [names_side(prompt) for prompt in (*named, *plain)] == [True] * 4 + [False] * 5
