"""Training, DreamBooth and sampling on a store, without the encoder that made it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade.config.dreambooth import DreamBoothConfig, PriorConfig, Recipe
from cascade.config.folders import read_stage_config
from cascade.config.stage import SamplerConfig
from cascade.config.train import PretrainConfig, TrainConfig
from cascade.dreambooth.personalise import personalise
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade.text.embed import Embedder, Share, fill
from cascade.text.encoder import TextEncoder
from cascade.text.store import EmbeddingStore
from cascade.training.pretrain import pretrain

SHORT = TrainConfig(steps=2, batch_size=2)


@pytest.fixture
def store(tiny_cascade: Path, tmp_path: Path) -> Path:
    """The embeddings of three prompts."""
    text = read_stage_config(tiny_cascade / "base16").text
    embedder = Embedder.open(tiny_cascade / "text", text, "auto", "cpu", batch_size=8)
    captions = ["a dog", "a cat", "a zug dog"]
    fill(tmp_path / "store", embedder, captions, share=Share(), shard_bytes=1 << 20)
    return tmp_path / "store"


@pytest.fixture
def no_encoder(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever loads an encoder once there is a store."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(TextEncoder, "load", refuse)


@pytest.fixture
def without(tiny_cascade: Path, tmp_path: Path) -> Path:
    """The tiny cascade without its text encoder."""
    return shutil.copytree(
        tiny_cascade, tmp_path / "without", ignore=shutil.ignore_patterns("text")
    )


def _pretraining(folder: Path, store: Path, captions: list[str]) -> PretrainConfig:
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    np.save(data / "images.npy", rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8))
    (data / "captions.jsonl").write_text("\n".join(json.dumps([text]) for text in captions))
    return PretrainConfig.model_validate(
        {
            "stage": read_stage_config(folder / "without" / "base16").model_dump(),
            "train": {"steps": 2, "batch_size": 2, "validate_every": 2},
            "data": {"folder": data},
            "validation": {"prompts": ["a dog"], "images_per_prompt": 1},
            "embeddings": store,
            "output": folder / "run",
        }
    )


@pytest.mark.usefixtures("no_encoder", "without")
def test_training_reads_the_store(store: Path, tmp_path: Path) -> None:
    folder = pretrain(_pretraining(tmp_path, store, ["a dog", "a cat"]))
    assert Stage.load(folder).config.name == "base16"


@pytest.mark.usefixtures("no_encoder", "without")
def test_training_wants_every_caption_before_it_starts(store: Path, tmp_path: Path) -> None:
    config = _pretraining(tmp_path, store, ["a dog", "a teapot"])
    with pytest.raises(UserError, match="no embedding of 'a teapot'"):
        pretrain(config)
    assert not config.output.exists()


@pytest.mark.usefixtures("without")
def test_training_does_not_read_the_encoder_anew_for_every_caption(
    store: Path, tiny_cascade: Path, tmp_path: Path
) -> None:
    config = _pretraining(tmp_path, store, ["a dog", "a cat"])
    changes = {"embeddings": None, "text_encoder": tiny_cascade / "text"}
    layerwise = config.model_copy(update={**changes, "encoder_mode": "layerwise"})
    with pytest.raises(UserError, match="embed the captions first"):
        pretrain(layerwise)


def test_text_comes_from_somewhere(store: Path, without: Path, tmp_path: Path) -> None:
    values = _pretraining(tmp_path, store, ["a dog", "a cat"]).model_dump()
    with pytest.raises(UserError, match="text_encoder or from embeddings"):
        PretrainConfig.parse({**values, "embeddings": None}, "run.toml")
    with pytest.raises(UserError, match="overflows in float16"):
        PretrainConfig.parse({**values, "encoder_mode": "float16"}, "run.toml")


@pytest.mark.usefixtures("no_encoder")
def test_dreambooth_and_sampling_read_the_store(
    store: Path, without: Path, photos: Path, tmp_path: Path
) -> None:
    recipe = Recipe(
        prior=PriorConfig(images=2, sampler=SamplerConfig(steps=2, guidance=1.0)),
        base=SHORT,
        super_resolution=SHORT,
    )
    config = DreamBoothConfig(
        cascade=str(without),
        instance_data_dir=photos,
        output_dir=tmp_path / "mine",
        class_noun="dog",
        identifier="zug",
        class_data_dir=tmp_path / "class",
        embeddings=store,
        recipe=recipe,
    )
    tuned = Cascade.load(personalise(config), embeddings=store)
    assert isinstance(tuned.encoder, EmbeddingStore)
    pictures = tuned.sample("a zug dog", [0])
    assert pictures.tensor.shape == (1, 3, 32, 32)
    with pytest.raises(UserError, match="no embedding of 'a zug dog in the snow'"):
        tuned.sample("a zug dog in the snow", [0])


def test_pictures_are_those_of_the_encoder(store: Path, tiny_cascade: Path) -> None:
    stored = Cascade.load(tiny_cascade, embeddings=store).sample("a dog", [0]).tensor
    drawn = Cascade.load(tiny_cascade).sample("a dog", [0]).tensor
    # The embeddings differ by bfloat16's rounding, 2^-9 of each value: a few grey levels after two
    # random networks under guidance 3.
    assert 0 < (stored - drawn).abs().mean() < 0.05


def test_all_modes_reach_the_pipeline(
    tiny_cascade: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Cascade.load(tiny_cascade, encoder_mode="float32").prompts(["a dog"]).rows(["a dog"])
    layers = Cascade.load(tiny_cascade, encoder_mode="layerwise").prompts(["a dog"])
    assert torch.equal(layers.rows(["a dog"]).embedding, whole.embedding)
    assert "text encoder" not in caplog.text
    monkeypatch.setattr("cascade.text.encoder.device_memory", lambda device: 1)
    encoder = Cascade.load(tiny_cascade).encoder
    assert isinstance(encoder, TextEncoder)
    assert encoder.mode == "layerwise"
    assert "held in layerwise" in caplog.text
