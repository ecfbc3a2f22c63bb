"""A small vocabulary and a small random T5, made once for this package's tests."""

from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import T5Config, T5EncoderModel

from cascade.text.encoder import TextEncoder
from cascade.text.tokenizer import Tokenizer

WORDS = "a photo of dog cat backpack on the beach red blue wooden floor in snow jungle with hat"
RARE = ["zug", "qv", "xke"]


def _sentences() -> list[str]:
    words = WORDS.split()
    near = [f"{a} {b} {c}" for a, b, c in zip(words, words[1:], words[2:], strict=False)]
    return near * 5 + RARE


@pytest.fixture(scope="session")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A unigram model of 60 pieces with T5's special ids."""
    folder = tmp_path_factory.mktemp("vocabulary")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_sentences()),
        model_prefix=str(folder / "spiece"),
        vocab_size=80,
        model_type="unigram",
        hard_vocab_limit=False,
        required_chars="abcdefghijklmnopqrstuvwxyz0123456789,.",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder / "spiece.model"


@pytest.fixture(scope="session")
def tokenizer(spiece: Path) -> Tokenizer:
    """The small vocabulary."""
    return Tokenizer(spiece)


@pytest.fixture(scope="session")
def encoder_folder(spiece: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 v1.1 encoder of width 16 with the small vocabulary, on disk."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=100,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_heads=2,
        num_layers=2,
        feed_forward_proj="gated-gelu",
    )
    T5EncoderModel(config).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(spiece.read_bytes())
    return folder


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> TextEncoder:
    """The small encoder, loaded."""
    return TextEncoder.load(encoder_folder)
