"""The frozen encoder: parity with transformers, padding, loading."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel

from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.text.encoder import TextEncoder
from cascade.text.files import EncoderFiles

TEXT = TextConfig(max_length=16)

PROMPTS = ["a photo of a dog", "cat", ""]


def test_matches_transformers(encoder: TextEncoder, encoder_folder: Path) -> None:
    reference = T5EncoderModel.from_pretrained(encoder_folder)  # comes in evaluation mode
    text = encoder.embed(["a photo of a dog"], TEXT)
    ids = torch.tensor([encoder.tokenizer.encode("a photo of a dog", 16)])
    with torch.no_grad():
        expected = reference(input_ids=ids).last_hidden_state
    assert text.mask.all()
    assert torch.equal(text.embedding, expected)


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    together = encoder.embed(PROMPTS, TEXT)
    assert together.embedding.shape == (*together.mask.shape, encoder.width)
    assert together.mask.sum(dim=1).tolist() == [
        len(encoder.tokenizer.encode(prompt, 16)) for prompt in PROMPTS
    ]
    assert (together.embedding[~together.mask] == 0).all()
    for row, prompt in enumerate(PROMPTS):
        alone = encoder.embed([prompt], TEXT).embedding[0]
        # fp32 sums in another order: a few ulps of values near 1.
        torch.testing.assert_close(
            together.embedding[row, : len(alone)], alone, rtol=1e-5, atol=1e-6
        )


def test_trims_truncates_and_cleans(encoder: TextEncoder) -> None:
    assert encoder.embed(
        ["a photo of a dog on the beach"], TextConfig(max_length=3)
    ).mask.shape == (1, 3)
    upper = encoder.embed(["A  DOG"], TextConfig(max_length=16, cleaning="lower"))
    assert torch.equal(upper.embedding, encoder.embed(["a dog"], TEXT).embedding)
    with pytest.raises(ValueError, match="at least one"):
        encoder.embed([], TEXT)


def test_is_frozen(encoder: TextEncoder) -> None:
    assert not encoder.embed(["a dog"], TEXT).embedding.requires_grad


def test_published_layout(encoder: TextEncoder, encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "text_encoder" / "spiece.model").rename(tmp_path / "tokenizer" / "spiece.model")
    published = TextEncoder.load(tmp_path / "text_encoder")
    assert _same(published, encoder)
    assert published.files.model_digest == encoder.files.model_digest
    assert published.files.tokenizer_digest == encoder.files.tokenizer_digest


def test_shards_and_variants(encoder: TextEncoder, encoder_folder: Path, tmp_path: Path) -> None:
    sharded = shutil.copytree(encoder_folder, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    T5EncoderModel.from_pretrained(encoder_folder).save_pretrained(sharded, max_shard_size="8KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert _same(TextEncoder.load(sharded), encoder)
    assert TextEncoder.load(sharded).files.model_digest == encoder.files.model_digest
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match="fetch all shards"):
        TextEncoder.load(sharded)

    half = shutil.copytree(encoder_folder, tmp_path / "half")
    weights = load_file(half / "model.safetensors")
    (half / "model.safetensors").unlink()
    save_file({name: w.half() for name, w in weights.items()}, half / "model.fp16.safetensors")
    text = TextEncoder.load(half, "float32").embed(PROMPTS, TEXT).embedding
    assert text.dtype == torch.float32
    layers = TextEncoder.load(half, "layerwise").embed(PROMPTS, TEXT).embedding
    assert torch.equal(layers, text)
    # The weights are rounded to 11 bits, the sums are not.
    torch.testing.assert_close(text, encoder.embed(PROMPTS, TEXT).embedding, rtol=1e-2, atol=1e-2)


def test_digests_tell_vocabularies_and_weights_apart(
    encoder: TextEncoder, encoder_folder: Path, tmp_path: Path
) -> None:
    for name in ("shared.weight", "encoder.block.1.layer.1.DenseReluDense.wo.weight"):
        other = shutil.copytree(encoder_folder, tmp_path / name)
        weights = load_file(other / "model.safetensors")
        weights[name][5, 0] += 1
        save_file(weights, other / "model.safetensors")
        assert EncoderFiles.open(other).model_digest != encoder.files.model_digest
    with (other / "spiece.model").open("ab") as file:
        file.write(b"\0")
    assert EncoderFiles.open(other).tokenizer_digest != encoder.files.tokenizer_digest


def _same(one: TextEncoder, other: TextEncoder) -> bool:
    texts = [encoder.embed(PROMPTS, TEXT).embedding for encoder in (one, other)]
    return torch.equal(*texts)


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
    with pytest.raises(UserError, match="is damaged"):
        TextEncoder.load(folder)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("num_layers", 3, "lacks"),
        ("d_ff", 64, "lacks"),
        ("vocab_size", 30, "lacks"),
        ("model_type", "clip", "a 'clip'; give the folder of a T5"),
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
