"""Initial weights: each layer's are a function of the seed and of the layer's name.

So a process can draw the layers that it needs, one at a time.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import nn

from cascade.diffusion.noise import derive_seed


@runtime_checkable
class Initialized(Protocol):
    """A layer that draws its own weights, as PyTorch's do."""

    def reset_parameters(self) -> None:
        """Draw them."""


def initialize(network: nn.Module, seed: int) -> None:
    """Draw the weights of a network that was built on the meta device, in place on the CPU."""
    for name, layer in network.named_modules():
        initialize_layer(layer, name, seed)


def initialize_layer(layer: nn.Module, name: str, seed: int) -> None:
    """Draw what a layer owns itself, in place on the CPU."""
    if not isinstance(layer, Initialized):
        return
    layer.to_empty(device="cpu", recurse=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights", name))
        layer.reset_parameters()
