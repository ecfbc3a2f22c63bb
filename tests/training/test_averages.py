"""Averages of weights: their formulas, what is published, where they lie."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cascade.config.averages import AverageConfig
from cascade.config.train import TrainConfig
from cascade.training.averages import Averages, exponent

STEPS = 40


def _run(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"steps": STEPS, "batch_size": 1, **settings})


def _counting(run: TrainConfig) -> tuple[nn.Linear, Averages]:
    """Averages of weights that grow by one in each step."""
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    averages = Averages(network, run)
    for step in range(STEPS):
        nn.init.constant_(network.weight, step + 1)
        averages.update(step)
    return network, averages


def _average(**settings: object) -> torch.Tensor:
    _, averages = _counting(_run(**settings))
    (first, *_) = averages.kept.values()
    return first["weight"]


def test_an_exponential_one_moves_by_its_decay_once_it_is_warm() -> None:
    network = nn.Linear(3, 2)
    start = network.weight.detach().clone()
    averages = Averages(network, _run(ema_decay=0.5))
    (kept,) = averages.kept.values()
    with torch.no_grad():
        network.weight.add_(1.0)
    averages.update(0)  # d = 1 / 10
    torch.testing.assert_close(kept["weight"], start + 0.9)
    averages.update(10_000)
    torch.testing.assert_close(kept["weight"], start + 0.95)
    assert not kept["weight"].requires_grad


@pytest.mark.parametrize("decay", [0.5, 0.8, STEPS / (STEPS + 9), 0.82, 0.9999])
def test_what_is_said_to_change_nothing_of_the_average_changes_nothing(decay: float) -> None:
    note = _run(ema_decay=decay).ema_note
    reached = STEPS / (STEPS + 9)  # (1 + n) / (10 + n) at the last of n = 0 .. STEPS - 1
    assert (note is None) == (decay <= reached)
    assert torch.equal(_average(ema_decay=decay), _average(ema_decay=reached)) == (decay >= reached)


def test_a_half_life_in_images_is_a_decay_a_step() -> None:
    halved = _average(averages=[{"half_life": 3}])
    assert torch.equal(halved, _average(ema_decay=0.5 ** (1 / 3)))


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.28])
def test_a_power_function_one_weighs_the_past_by_its_power(std: float) -> None:
    gamma = exponent(std)
    # Karras et al. 2024, section 3.1: the standard deviation of the density (gamma + 1) x^gamma.
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(std)
    # The closed form of the recursion: a weight of step n counts (n/N)^p - ((n-1)/N)^p.
    edges = (torch.arange(STEPS + 1, dtype=torch.float64) / STEPS) ** (gamma + 1)
    expected = (edges.diff() * torch.arange(1, STEPS + 1)).sum()
    average = float(_average(averages=[{"std": std}]))
    assert average == pytest.approx(float(expected), rel=STEPS * 6e-8)  # float32 in each step


def test_the_first_one_is_lent_to_the_network_and_then_given() -> None:
    network, averages = _counting(_run(ema_decay=0.5, averages=[{"std": 0.1}]))
    assert list(averages.kept) == ["decay-0.5", "std-0.1"]
    first = averages.kept["decay-0.5"]["weight"].clone()
    weight = network.weight.detach().clone()
    with averages.published():
        assert torch.equal(network.weight, first)
    assert torch.equal(network.weight, weight)
    assert torch.equal(averages.kept["decay-0.5"]["weight"], first)
    averages.publish()
    assert torch.equal(network.weight, first)


def test_without_an_average_the_weights_are_published() -> None:
    network, averages = _counting(_run())
    with averages.published():
        assert float(network.weight) == STEPS
    averages.publish()
    assert float(network.weight) == STEPS


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "half_life or a std"),
        ({"half_life": 5, "std": 0.1}, "half_life or a std"),
        ({"std": 0.29}, "less than or equal to 0.28"),
    ],
)
def test_an_average_says_one_thing(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AverageConfig.model_validate(values)


def test_the_same_average_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="names one twice"):
        _run(averages=[{"std": 0.1}, {"std": 0.1}])
