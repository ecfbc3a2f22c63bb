"""Learning-rate schedules, the optimizers and the moving average."""

import math

import pytest
import torch
from torch import nn
from torch.optim import Adafactor, AdamW

from cascade.config.optimizer import OptimizerConfig
from cascade.errors import UserError
from cascade.training.optim import (
    check_optimizer,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)


def _rates(config: OptimizerConfig, steps: int) -> list[float]:
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_warm_up_rises_along_a_line_and_reaches_the_rate() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4)
    assert _rates(config, 7) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


def test_linear_falls_to_zero_just_after_the_last_step() -> None:
    config = OptimizerConfig(learning_rate=1.0, schedule="linear")
    assert _rates(config, 4) == [1.0, 0.75, 0.5, 0.25]
    assert learning_rate(config, 4, 4) == 0.0


def test_cosine_is_half_a_cosine_after_the_warm_up() -> None:
    config = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=2)
    rates = _rates(config, 6)
    assert rates[:2] == [0.5, 1.0]
    expected = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates[2:] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_longer_than_the_run_never_passes_the_rate(schedule: str) -> None:
    config = OptimizerConfig.model_validate(
        {"learning_rate": 1.0, "schedule": schedule, "warmup_steps": 10}
    )
    rates = _rates(config, 5)
    assert rates == sorted(rates)
    assert 0 < rates[0] <= rates[-1] < 1


def test_adamw_gets_every_number_of_its_settings() -> None:
    config = OptimizerConfig(
        learning_rate=3e-4, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, name="adamw"
    )
    optimizer = make_optimizer(config, nn.Linear(2, 2).parameters())
    assert isinstance(optimizer, AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.8, 0.95), 1e-6)
    assert group["weight_decay"] == 0.1


def test_adamw_takes_the_step_of_its_formula() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8)
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer(config, [weight])
    weight.grad = torch.tensor([4.0])
    optimizer.step()
    # Bias-corrected moments of the first step are g and g^2: decayed weight, minus lr * sign(g).
    assert float(weight.detach()) == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, rel=1e-6)


def test_adafactor_factors_its_second_moment() -> None:
    optimizer = make_optimizer(OptimizerConfig(name="adafactor"), nn.Linear(6, 4).parameters())
    assert isinstance(optimizer, Adafactor)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert state["row_var"].numel() == 4
    assert state["col_var"].numel() == 6


def test_8_bit_adamw_stores_two_bytes_a_weight() -> None:
    pytest.importorskip("torchao")
    weight = nn.Parameter(torch.randn(512, 1024))
    optimizer = make_optimizer(OptimizerConfig(name="adamw8bit"), [weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    parts: list[torch.Tensor] = []
    for value in optimizer.state[weight].values():
        names = value.__tensor_flatten__()[0] if hasattr(value, "codes") else None
        parts += [getattr(value, name) for name in names] if names else [value]
    stored = sum(part.numel() * part.element_size() for part in parts)
    # Two bytes, a float32 scale for each 256 of them, a table of 256 float32 per moment, the step.
    assert stored == weight.numel() * (2 + 8 / 256) + 2 * 1024 + 4
    assert stored / weight.numel() < 2.04  # AdamW: 8


def test_8_bit_adamw_goes_where_adamw_goes() -> None:
    pytest.importorskip("torchao")
    numbers = {"learning_rate": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}
    start = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    ends = []
    for name in ("adamw", "adamw8bit"):
        weight = nn.Parameter(start.clone())
        config = OptimizerConfig.model_validate({"name": name, **numbers})
        optimizer = make_optimizer(config, [weight])
        for step in range(20):
            weight.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(step)) + 1.0
            set_learning_rate(optimizer, learning_rate(config, step, 20))
            optimizer.step()
        ends.append(weight.detach())
    moved = ends[0] - start
    # Codes between 0.1 and 1 of a block's largest value are 0.9 / 64 apart: one in the middle of
    # them is off by at most 2 % of itself, both ways.
    assert (ends[1] - ends[0]).norm() < 0.02 * moved.norm()
    assert not torch.equal(ends[0], ends[1])


def test_the_rate_reaches_8_bit_adamw() -> None:
    pytest.importorskip("torchao")
    weight = nn.Parameter(torch.zeros(64, 64))
    optimizer = make_optimizer(OptimizerConfig(name="adamw8bit", learning_rate=1.0), [weight])
    for rate in (0.5, 0.25):
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        # Bias-corrected moments of equal gradients are 1 and 1; 1 is a code of its own.
        torch.testing.assert_close(before - weight.detach(), torch.full((64, 64), rate))


def test_an_optimizer_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade.training.optim.find_spec", lambda name: None)
    config = OptimizerConfig(name="adamw8bit")
    with pytest.raises(UserError, match=r"needs the package torchao; .*\[quantized\]"):
        check_optimizer(config)
    with pytest.raises(UserError, match="torchao"):
        make_optimizer(config, nn.Linear(2, 2).parameters())
    check_optimizer(OptimizerConfig(name="adamw"))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_some_parameters_are_spared_the_weight_decay(name: str) -> None:
    config = OptimizerConfig.model_validate(
        {"name": name, "learning_rate": 0.1, "weight_decay": 0.5}
    )
    spared, decayed = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer = make_optimizer(config, [spared, decayed], [spared])
    for parameter in (spared, decayed):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(spared.detach(), torch.ones(4, 4))
    torch.testing.assert_close(decayed.detach(), torch.full((4, 4), 0.95))


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    groups = make_optimizer(OptimizerConfig(), layer.parameters()).param_groups
    assert [list(parameter.shape) for parameter in groups[0]["params"]] == [[2, 2]]
