"""Adapters of weights, as parametrizations: whoever reads a layer's `weight` gets the adapted one.

A wrapper around a layer would be passed by: `ResBlock` splits the weight of its skip itself.

Shapes: `r` rank, `I O` input and output channels of a layer; a convolution's `I` counts its taps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

_PREFIX = ".parametrizations.weight."


class LowRank(nn.Module):
    """W + scale B A on some of a weight's rows (Hu et al. 2022, eq. 3).

    Args:
        down: A, r I.
        up: B, O r.
        scale: of the change.
        first: row that it begins with.
    """

    def __init__(self, down: Tensor, up: Tensor, scale: float = 1.0, first: int = 0) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.scale = scale
        self.first = first

    def forward(self, weight: Tensor) -> Tensor:
        """Adapt a weight, O' I with any number of trailing dimensions in I."""
        change = self.scale * (self.up.to(weight.dtype) @ self.down.to(weight.dtype))
        behind = len(weight) - self.first - len(change)
        return weight + F.pad(change, (0, 0, self.first, behind)).view_as(weight)


def adaptable(network: nn.Module) -> list[str]:
    """Name the layers whose weights can be adapted: matrices and convolutions."""
    kinds = (nn.Linear, nn.Conv2d)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def adapt(network: nn.Module, layer: str, adapter: nn.Module) -> None:
    """Adapt a layer's weight, in place; a second adapter is applied to what the first one gives."""
    parametrize.register_parametrization(network.get_submodule(layer), "weight", adapter)


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's `state_dict` as without adapters, each merged into its weight.

    Computed in float64 and rounded once.
    """
    state = network.state_dict()
    for name, module in network.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        layer = module.parametrizations["weight"]
        with torch.no_grad():
            exact = layer.original.double()
            for adapter in layer:
                exact = adapter(exact)
        for key in [key for key in state if key.startswith(f"{name}{_PREFIX}")]:
            del state[key]
        state[f"{name}.weight"] = exact.to(layer.original.dtype)
    return state
