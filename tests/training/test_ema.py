"""The average of the weights, and the settings that change nothing in it."""

import pytest
import torch
from torch import nn

from cascade.config.train import TrainConfig
from cascade.training.optim import EMA

STEPS = 40


def _average(decay: float) -> torch.Tensor:
    """What is published of weights that grow by one in each step."""
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    ema = EMA(network, decay)
    for step in range(STEPS):
        nn.init.constant_(network.weight, step + 1)
        ema.update(network, step)
    (average, _) = ema.network.parameters()
    return average.detach()


@pytest.mark.parametrize("decay", [0.5, 0.8, STEPS / (STEPS + 9), 0.82, 0.9999])
def test_what_is_told_to_change_nothing_changes_nothing(decay: float) -> None:
    told = TrainConfig(steps=STEPS, batch_size=1, ema_decay=decay).ema_note
    reached = STEPS / (STEPS + 9)  # (1 + n) / (10 + n) at the last of n = 0 .. STEPS - 1
    assert (told is None) == (decay <= reached)
    assert torch.equal(_average(decay), _average(reached)) == (decay >= reached)
