"""What becomes of a learned variance: trained with the bound, frozen in its last layer, dropped."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cascade.config.folders import read_stage_config
from cascade.config.stage import StageConfig
from cascade.config.train import ObjectiveConfig
from cascade.data.stream import Samples
from cascade.diffusion.denoiser import Conditioning
from cascade.diffusion.noise import Noise
from cascade.diffusion.objective import BaseObjective
from cascade.errors import UserError
from cascade.stage import Stage, check_weights, meta_network
from cascade.text.prompts import PromptTable
from cascade.training.objective import check_variance, make_objective, without_variance
from cascade.training.report import read_log
from cascade.training.weights import FreshWeights, StoredWeights, fill

Run = Callable[..., Stage]


def _last(stage: Stage) -> list[Tensor]:
    return [p.detach().clone() for p in stage.network.get_submodule("conv_out").parameters()]


def _settings(variance: str, optimizer: str) -> dict[str, object]:
    numbers = {"name": optimizer, "learning_rate": 1e-2, "weight_decay": 0.5}
    return {"objective": {"variance": variance}, "optimizer": numbers}


def _awake(config: StageConfig) -> Stage:
    """A stage whose last convolution is not zero, as in a trained one."""
    stage = Stage.build(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stage.network.get_submodule("conv_out").parameters():
            parameter.normal_(0.0, 0.05, generator=generator)
    return stage


@pytest.fixture
def awake(monkeypatch: pytest.MonkeyPatch, learned: StageConfig) -> Stage:
    """Such a stage; runs of this test begin with one, too."""
    stage = _awake(learned)
    weights = {name: value.clone() for name, value in stage.network.state_dict().items()}
    monkeypatch.setattr(FreshWeights, "rows", lambda self, name, rows: weights[name][rows])
    return stage


def _dropped(stage: Stage, folder: Path) -> Stage:
    """The stage without its variance, as a run begins with it."""
    stage.save(folder)
    config = without_variance(stage.config)
    network = meta_network(config).to_empty(device="cpu")
    fill(network, StoredWeights(folder))
    return Stage(config, network)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_the_variance_s_rows_keep_every_bit(
    tmp_path: Path,
    run: Run,
    learned: StageConfig,
    awake: Stage,
    optimizer: str,
    precision: str,
) -> None:
    if optimizer == "adamw8bit":
        pytest.importorskip("torchao")
    before = _last(awake)
    changes = {"precision": precision, "ema_decay": 0.9, "checkpoint_every": 6}
    after = _last(run(tmp_path, learned, **_settings("freeze", optimizer), **changes))
    for ours, theirs in zip(after, before, strict=True):
        assert torch.equal(ours[3:], theirs[3:])
        assert not torch.allclose(ours[:3], theirs[:3])
    assert "loss/vb" not in read_log(tmp_path / "log.jsonl")[0]


def test_trained_the_variance_s_rows_move_and_lower_the_bound(
    tmp_path: Path,
    run: Run,
    learned: StageConfig,
    awake: Stage,
    samples: Samples,
    table: PromptTable,
) -> None:
    before, first = _last(awake), _bound(awake, samples, table)
    changes = {"steps": 60, "log_every": 20, "checkpoint_every": 60}
    trained = run(tmp_path, learned, **_settings("train", "adamw"), **changes)
    after = _last(trained)
    assert not any(torch.equal(new[3:], old[3:]) for new, old in zip(after, before, strict=True))
    assert _bound(trained, samples, table) < first


@torch.no_grad()
def _bound(stage: Stage, samples: Samples, table: PromptTable) -> float:
    """The bound of many rows: that of a few depends on whether one is at its first timestep."""
    batch = samples.rows(range(256))
    text = table.rows(batch.prompts)
    objective = make_objective(stage, ObjectiveConfig())
    cond = Conditioning(text.embedding, text.mask)
    return float(
        objective(stage.denoiser, batch.images, cond, Noise(batch.seeds)).terms["vb"].mean()
    )


def test_trained_is_what_happens_unless_said_otherwise(learned: StageConfig) -> None:
    stage = Stage.build(learned)
    objectives = [
        make_objective(stage, ObjectiveConfig.model_validate({"variance": word}))
        for word in (None, "train", "freeze")
    ]
    weights = [o.vb_weight for o in objectives if isinstance(o, BaseObjective)]
    assert weights == [1.0, 1.0, 0.0]


def test_dropped_the_prediction_stays_and_the_sampler_takes_the_smallest_variance(
    tmp_path: Path, learned: StageConfig, table: PromptTable
) -> None:
    stage = _awake(learned)
    stage.network.eval()
    dropped = _dropped(stage, tmp_path / "whole")
    assert not dropped.config.unet.learned_variance
    assert dropped.config.sampler.variance == "fixed_small"
    for ours, theirs in zip(_last(dropped), _last(stage), strict=True):
        assert torch.equal(ours, theirs[:3])

    dropped.save(tmp_path)
    config = read_stage_config(tmp_path)
    assert config == StageConfig.model_validate(config.model_dump())  # the checks pass
    check_weights(tmp_path, config)
    text, null = table.rows(["a dog"]), table.rows([None])
    fixed = learned.sampler.model_copy(update={"variance": "fixed_small"})
    expected = stage.sample(text, null, Noise([3]), sampler=fixed)
    drawn = Stage.load(tmp_path).sample(text, null, Noise([3]))
    # Three output channels instead of six: the convolution may sum in another order, and four
    # steps from sigma = 2e4 carry that on.
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(stage.sample(text, null, Noise([3])), expected, atol=1e-2)


def test_frozen_and_dropped_the_rest_gets_the_same_gradient(
    tmp_path: Path, learned: StageConfig, table: PromptTable, samples: Samples
) -> None:
    frozen = _awake(learned)
    dropped = _dropped(frozen, tmp_path)
    batch, text = samples.rows(range(3)), table.rows(["a dog"] * 3)
    cond = Conditioning(text.embedding, text.mask)
    losses = []
    for stage, word in ((frozen, "freeze"), (dropped, "drop")):
        objective = make_objective(stage, ObjectiveConfig.model_validate({"variance": word}))
        terms = objective(stage.denoiser, batch.images, cond, Noise(batch.seeds)).terms
        losses.append(terms["mse"])
        assert set(terms) == {"mse"}
        terms["mse"].sum().backward()
    torch.testing.assert_close(*losses)
    ours = dict(dropped.network.named_parameters())
    for name, parameter in frozen.network.named_parameters():
        gradient = parameter.grad
        if name.startswith("conv_out"):
            assert gradient[3:].eq(0).all()
            gradient = gradient[:3]
        # A last convolution of another width may sum in another order.
        torch.testing.assert_close(ours[name].grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_word_about_a_variance_that_is_not_learned_is_refused(
    stage_config: StageConfig, learned: StageConfig
) -> None:
    for word in ("train", "freeze", "drop"):
        objective = ObjectiveConfig.model_validate({"variance": word})
        with pytest.raises(UserError, match=f"'base8' has no learned variance to {word}; leave"):
            check_variance(stage_config, objective)
        check_variance(learned, objective)
    check_variance(stage_config, ObjectiveConfig())
