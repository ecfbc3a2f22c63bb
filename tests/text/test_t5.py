"""The frozen encoder: parity with transformers, padding, loading."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import T5EncoderModel

from cascade.errors import UserError
from cascade.text import TextEncoder

PROMPTS = ["a photo of a dog", "cat", ""]


def test_matches_transformers(encoder: TextEncoder, encoder_folder: Path) -> None:
    reference = T5EncoderModel.from_pretrained(encoder_folder)  # comes in evaluation mode
    text = encoder.embed(["a photo of a dog"], 16, "none")
    ids = torch.tensor([encoder.tokenizer.encode("a photo of a dog", 16)])
    with torch.no_grad():
        expected = reference(input_ids=ids).last_hidden_state
    assert text.mask.all()
    assert torch.equal(text.embedding, expected)


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    together = encoder.embed(PROMPTS, 16, "none")
    assert together.embedding.shape == (*together.mask.shape, encoder.width)
    assert together.mask.sum(dim=1).tolist() == [
        len(encoder.tokenizer.encode(prompt, 16)) for prompt in PROMPTS
    ]
    assert (together.embedding[~together.mask] == 0).all()
    for row, prompt in enumerate(PROMPTS):
        alone = encoder.embed([prompt], 16, "none").embedding[0]
        # fp32 sums in another order: a few ulps of values near 1.
        torch.testing.assert_close(
            together.embedding[row, : len(alone)], alone, rtol=1e-5, atol=1e-6
        )


def test_trims_truncates_and_cleans(encoder: TextEncoder) -> None:
    assert encoder.embed(["a photo of a dog on the beach"], 3, "none").mask.shape == (1, 3)
    upper = encoder.embed(["A  DOG"], 16, "lower")
    assert torch.equal(upper.embedding, encoder.embed(["a dog"], 16, "none").embedding)
    with pytest.raises(ValueError, match="at least one"):
        encoder.embed([], 16, "none")


def test_is_frozen(encoder: TextEncoder) -> None:
    assert not encoder.embed(["a dog"], 16, "none").embedding.requires_grad


def test_bfloat16_is_taken_and_float16_refused(encoder_folder: Path) -> None:
    half = TextEncoder.load(encoder_folder, torch.bfloat16)
    assert half.embed(["a dog"], 16, "none").embedding.dtype == torch.bfloat16
    with pytest.raises(UserError, match="overflows in float16"):
        TextEncoder.load(encoder_folder, torch.float16)


def test_published_layout(encoder: TextEncoder, encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "text_encoder" / "spiece.model").rename(tmp_path / "tokenizer" / "spiece.model")
    published = TextEncoder.load(tmp_path / "text_encoder")
    assert published.fingerprint == encoder.fingerprint


def test_fingerprint_tells_vocabularies_and_weights_apart(
    encoder: TextEncoder, encoder_folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(encoder_folder, tmp_path / "other")
    model = T5EncoderModel.from_pretrained(other)
    with torch.no_grad():
        model.shared.weight[5, 0] += 1
    model.save_pretrained(other)
    assert TextEncoder.load(other).fingerprint != encoder.fingerprint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "spiece.model"])
def test_missing_file(encoder_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"no {name}"):
        TextEncoder.load(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text encoder folder"):
        TextEncoder.load(tmp_path / "nowhere")


def test_truncated_weights(encoder_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        TextEncoder.load(folder)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("num_layers", 3, "lacks"),
        ("d_ff", 64, "lacks|cannot be read"),
        ("vocab_size", 30, "pieces but|cannot be read|lacks"),
    ],
)
def test_config_of_another_model(
    encoder_folder: Path, tmp_path: Path, setting: str, value: int, message: str
) -> None:
    folder = shutil.copytree(encoder_folder, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {setting: value}))
    with pytest.raises(UserError, match=message):
        TextEncoder.load(folder)
