"""An exponential moving average of the weights."""

import copy

import torch
from torch import Tensor, nn

from cascade.config.train import warmed_up_decay


class EMA:
    """Keeps `average <- d average + (1 - d) weights` of a network's parameters.

    `d` grows as `warmed_up_decay` up to `decay`, so that the first weights, which know nothing, are
    soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Move towards the network's weights after `updates` earlier updates."""
        decay = min(self.decay, warmed_up_decay(updates))
        averages: list[Tensor] = list(self.network.parameters())
        weights: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, weights, 1.0 - decay)
