"""DreamBooth on both stages of a cascade of DeepFloyd IF's shape."""

import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.config.dreambooth import DreamBoothConfig, Recipe
from cascade.config.folders import CascadeManifest, read_stage_config
from cascade.config.stage import (
    DiffusionConfig,
    LowResConfig,
    SamplerConfig,
    StageConfig,
    TextConfig,
    ThresholdConfig,
)
from cascade.dreambooth import personalise as module
from cascade.dreambooth.class_images import Drawing
from cascade.dreambooth.personalise import personalise
from cascade.errors import UserError
from cascade.model.unet import UNet
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade.text.encoder import TextEncoder
from cascade.training.report import read_log

Settings = Callable[..., DreamBoothConfig]
STAGES = ("base16", "sr32")


@pytest.fixture(scope="module")
def deepfloyd(
    tmp_path_factory: pytest.TempPathFactory, tiny_cascade: Path, base: StageConfig
) -> Path:
    """The folder of such a cascade, 16 -> 32 pixels, of random weights; read it only."""
    folder = tmp_path_factory.mktemp("cascades") / "deepfloyd"
    shutil.copytree(tiny_cascade / "text", folder / "text")
    threshold = ThresholdConfig(kind="dynamic", percentile=0.95, cap=1.5)
    unet = {"text_norm": "group", "activation": "gelu", "learned_variance": True}
    changes = {
        "diffusion": DiffusionConfig(schedule="squared_cosine", prediction="eps"),
        "text": TextConfig(max_length=16, cleaning="deepfloyd", null="empty", masked=False),
        "sampler": SamplerConfig(steps=3, variance="learned", guidance=7.0, threshold=threshold),
        "unet": base.unet.model_copy(update=unet),
    }
    low_res = LowResConfig(size=16, schedule="squared_cosine", align_corners=True)
    upper = base.unet.model_copy(update=unet | {"low_res": True, "residual_scale": 0.7071})
    larger = {"name": "sr32", "size": 32, "low_res": low_res, "unet": upper}
    for seed, more in enumerate(({}, larger)):
        config = base.model_copy(update=changes | more)
        stage = Stage.build(config, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in stage.network.get_submodule("conv_out").parameters():
                parameter.normal_(0.0, 0.05, generator=generator)
        stage.save(folder / config.name)
    manifest = CascadeManifest(name="deepfloyd", stages=STAGES, recipe="deepfloyd")
    (folder / "cascade.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


@pytest.fixture
def tuning(settings: Settings, deepfloyd: Path, recipe: Recipe) -> Settings:
    """Settings of a short run on that cascade; keywords change how both stages are tuned."""

    def tuning(output: Path, prior: bool = False, **changes: Any) -> DreamBoothConfig:
        values = recipe.model_dump()
        run = {name: changes.pop(name) for name in tuple(changes) if name in values["base"]}
        for name in ("base", "super_resolution"):
            values[name].update({"steps": 2, "validate_every": 2, **run})
        values["prior"] = {"images": 2, "batch_size": 2, "sampler": None} if prior else None
        own = {"cascade": str(deepfloyd), "validation_images": 1, **changes}
        return settings(output, Recipe.model_validate(values), **own)

    return tuning


def _last(folder: Path, name: str) -> list[Tensor]:
    network = Stage.load(folder / name).network
    return [parameter.detach() for parameter in network.get_submodule("conv_out").parameters()]


def test_both_stages_train_their_variance_on_true_pairs_and_the_checkpoint_s_class_images(
    tmp_path: Path, tuning: Settings, deepfloyd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    used: list[SamplerConfig] = []
    forward, samplers = UNet.forward, Drawing.samplers

    def noted(network: UNet, x: Tensor, t: Tensor, *rest: Any, **named: Any) -> Tensor:
        if network.training:
            seen.append((x, *rest[2:]))
        return forward(network, x, t, *rest, **named)

    def sampling(drawing: Drawing) -> list[SamplerConfig]:
        used.extend(samplers(drawing))
        return samplers(drawing)

    monkeypatch.setattr(UNet, "forward", noted)
    monkeypatch.setattr(Drawing, "samplers", sampling)
    folder = personalise(tuning(tmp_path / "mine", prior=True, gradient_accumulation_steps=2))
    for name in STAGES:
        assert all(line["loss/vb"] > 0 for line in read_log(folder / "runs" / name / "log.jsonl"))
        assert Stage.load(folder / name).config.unet.learned_variance
        for ours, theirs in zip(_last(folder, name), _last(deepfloyd, name), strict=True):
            # Of every channel; a single weight's gradient may be too small to move it.
            assert (ours != theirs).reshape(len(ours), -1).any(dim=1).all()
    upper = [(x, low_res, aug) for x, low_res, aug in seen if low_res is not None]
    assert len(upper) == 4  # two steps of two parts
    assert len(seen) == 8
    for x, low_res, aug in upper:
        # The photo, up-sampled and hardly noised, whatever the timestep of x.
        assert aug.tolist() == [0.0] * len(aug)
        assert low_res.abs().max() < 1.05
        assert not torch.isclose(low_res, x).all()
    own = read_stage_config(deepfloyd / "base16").sampler
    assert set(used) == {own.model_copy(update={"guidance": 1.0})}
    assert Cascade.load(folder).sample("a dog", [0]).images[0].size == (32, 32)


@pytest.mark.slow
def test_frozen_the_variance_stays_and_dropped_it_is_gone(
    tmp_path: Path, tuning: Settings, deepfloyd: Path
) -> None:
    frozen = personalise(tuning(tmp_path / "frozen", objective={"variance": "freeze"}))
    dropped = personalise(tuning(tmp_path / "dropped", objective={"variance": "drop"}))
    for name in STAGES:
        before = _last(deepfloyd, name)
        for ours, theirs in zip(_last(frozen, name), before, strict=True):
            assert torch.equal(ours[3:], theirs[3:])
            assert not torch.equal(ours[:3], theirs[:3])
        config = Stage.load(dropped / name).config
        assert not config.unet.learned_variance
        assert config.sampler.variance == "fixed_small"
        assert config.subjects
        for ours, theirs in zip(_last(dropped, name), before, strict=True):
            assert len(ours) == 3
            assert not torch.equal(ours, theirs[:3])
        assert "loss/vb" not in read_log(dropped / "runs" / name / "log.jsonl")[0]
    assert Cascade.load(dropped).sample("a dog", [0]).images[0].size == (32, 32)
    again = tuning(tmp_path / "again", cascade=str(dropped), objective={"variance": "train"})
    with pytest.raises(UserError, match="'base16' has no learned variance to train"):
        personalise(again)
    assert not (tmp_path / "again").exists()
    again = tuning(tmp_path / "again", cascade=str(dropped), prior=True)
    assert (personalise(again) / "cascade.json").is_file()


def test_super_resolution_may_be_told_less(
    tmp_path: Path, tuning: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: dict[str, set[str | None]] = {}
    train = module.train

    def noted(stage: StageConfig, weights: Any, stream: Any, *rest: Any) -> Stage:
        prompts[stage.name] = set(stream.samples.rows(range(4)).prompts)
        return train(stage, weights, stream, *rest)

    monkeypatch.setattr(module, "train", noted)
    personalise(tuning(tmp_path / "mine", identifier="zug", sr_prompt="a {class_noun}"))
    assert prompts == {"base16": {"a zug dog"}, "sr32": {"a dog"}}
    with pytest.raises(UserError, match="placeholder that is not known"):
        personalise(tuning(tmp_path / "other", sr_prompt="a {noun}"))


@pytest.mark.slow
def test_encoder_and_network_are_freed_before_the_next_network_is_loaded(
    tmp_path: Path, tuning: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: dict[type, list[weakref.ref[Any]]] = {TextEncoder: [], UNet: []}
    encoders: list[int] = []
    networks: list[int] = []
    load, train = Stage.load, module.train

    for kind, made in ((kind, kind.__init__) for kind in alive):

        def counted(
            one: Any, *rest: Any, kind: type = kind, made: Any = made, **named: Any
        ) -> None:
            alive[kind].append(weakref.ref(one))
            made(one, *rest, **named)

        monkeypatch.setattr(kind, "__init__", counted)

    def loading(*arguments: Any) -> Stage:
        gc.collect()
        encoders.append(sum(reference() is not None for reference in alive[TextEncoder]))
        return load(*arguments)

    def training(*arguments: Any) -> Stage:
        gc.collect()
        held = [reference() for reference in alive[UNet]]
        networks.append(sum(n is not None and n.conv_in.weight.device.type != "meta" for n in held))
        return train(*arguments)

    monkeypatch.setattr(Stage, "load", loading)
    monkeypatch.setattr(module, "train", training)
    personalise(tuning(tmp_path / "mine", prior=True, objective={"variance": "drop"}))
    assert alive[TextEncoder]
    assert encoders
    assert not any(encoders)
    assert networks == [0, 0]  # the one that is tuned is built by the loop
