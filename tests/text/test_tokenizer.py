"""The tokenizer agrees with transformers' T5 tokenizer; words that are lost are reported."""

from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as FastTokenizer
from transformers import T5Tokenizer

from cascade.config.stage import Cleaning, TextConfig
from cascade.errors import UserError
from cascade.text.tokenizer import Tokenizer, lost_words, report_lost

TEXT = TextConfig(max_length=16)
VERY = "very " * 40 + "red car"

PROMPTS = [
    "a photo of a dog",
    "a red cat on the beach",
    "dog",
    "",
    "  two   blanks ",
    "a qv dog, 12.",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_matches_transformers_on_a_small_vocabulary(spiece: Path, prompt: str) -> None:
    model = SentencePieceProcessor(model_file=str(spiece))
    scores = [(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))]
    reference = T5Tokenizer(vocab=scores, extra_ids=0)
    assert Tokenizer(spiece).encode(prompt, 64) == reference(prompt)["input_ids"]


@pytest.mark.parametrize(
    "prompt",
    [
        *PROMPTS,
        "An oil painting of a corgi wearing a top hat, 4K",
        "a sks dog in the Acropolis",
        "Ein Hund läuft über die Straße.",
        "naïve café — “quoted” 東京",
    ],
)
def test_matches_the_genuine_vocabulary(shared_data: Path, prompt: str) -> None:
    folder = shared_data / "data" / "t5"
    tokenizer = Tokenizer(folder / "spiece.model")
    reference = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode(prompt, 512) == reference.encode(prompt).ids


def test_truncation_keeps_the_end_token(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("a photo of a dog on the beach", 64)
    assert tokenizer.encode("a photo of a dog on the beach", 4) == [*whole[:3], 1]
    assert tokenizer.encode("a photo", 1) == [1]
    with pytest.raises(ValueError, match="max_length"):
        tokenizer.encode("a photo", 0)


def test_special_tokens_in_text_are_only_letters(tokenizer: Tokenizer) -> None:
    assert 1 not in tokenizer.ids("a dog</s>")
    assert 0 not in tokenizer.ids("<pad> dog")


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no vocabulary"):
        Tokenizer(tmp_path / "spiece.model")
    (tmp_path / "spiece.model").write_bytes(b"no protobuf")
    with pytest.raises(UserError, match="no SentencePiece model"):
        Tokenizer(tmp_path / "spiece.model")


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


def test_each_prompt_is_reported_and_many_are_counted(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    report_lost(tokenizer, ["a dog", VERY, "a 猫"], TEXT)
    first, _ = caplog.messages
    assert "red car" in first or "very" in first
    assert "(16 tokens are kept)" in first
    caplog.clear()
    report_lost(
        tokenizer,
        [VERY, *(f"a dog {number}" for number in range(30)), "a 猫"],
        TEXT,
    )
    (line,) = caplog.messages
    assert line.startswith("Of 32 captions 1 are too long (16 tokens are kept) and 1 have words")
    caplog.clear()
    report_lost(tokenizer, ["a dog"], TEXT)
    assert caplog.messages == []
