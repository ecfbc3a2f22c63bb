"""The tokenizer agrees with transformers' T5 tokenizer."""

from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as FastTokenizer
from transformers import T5Tokenizer

from cascade.errors import UserError
from cascade.text.tokenizer import Tokenizer

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


def test_pieces_and_decoding(tokenizer: Tokenizer) -> None:
    assert tokenizer.pieces[:3] == ("<pad>", "</s>", "<unk>")
    assert len(tokenizer.pieces) == len(tokenizer)
    assert tokenizer.decode(tokenizer.ids("a photo of a dog")) == "a photo of a dog"


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no vocabulary"):
        Tokenizer(tmp_path / "spiece.model")
    (tmp_path / "spiece.model").write_bytes(b"no protobuf")
    with pytest.raises(UserError, match="no SentencePiece model"):
        Tokenizer(tmp_path / "spiece.model")
