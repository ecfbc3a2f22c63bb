"""Where the weights come from that a run begins with, parameter by parameter and row by row.

A process asks for what it holds, so none ever holds a whole large network on the host.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from cascade.config.stage import StageConfig
from cascade.model.initial import initialize_layer
from cascade.stage import meta_network
from cascade.tensors import require_finite


class Weights(Protocol):
    """A network's initial weights."""

    def rows(self, name: str, rows: slice) -> Tensor:
        """Return rows of a parameter, along its first dimension, on the CPU."""
        ...


@dataclass(frozen=True)
class FreshWeights:
    """Weights drawn anew, a function of the seed, whatever part of them is asked for."""

    config: StageConfig
    seed: int
    _drawn: list[nn.Module] = field(default_factory=list, init=False, repr=False, compare=False)

    def rows(self, name: str, rows: slice) -> Tensor:
        """Return rows of the parameter's layer, drawn unless it is that of the call before."""
        layer, _, parameter = name.rpartition(".")
        module = self._network.get_submodule(layer)
        if module not in self._drawn:
            for before in self._drawn:  # none or one
                before.to_empty(device="meta", recurse=False)
            initialize_layer(module, layer, self.seed)
            self._drawn[:] = [module]
        return module.get_parameter(parameter).detach()[rows].clone()

    @cached_property
    def _network(self) -> nn.Module:
        return meta_network(self.config)


@dataclass(frozen=True)
class StoredWeights:
    """The weights of a stage folder, whose file is mapped and read where it is asked for."""

    folder: Path

    def rows(self, name: str, rows: slice) -> Tensor:
        """Read the rows, in float32."""
        read: Tensor = self._file.get_slice(name)[rows].float()
        require_finite({name: read}, str(self.folder / "model.safetensors"))
        return read

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.folder / "model.safetensors", framework="pt")


@torch.no_grad()
def fill(network: nn.Module, weights: Weights) -> None:
    """Write initial weights into what this process holds of a network."""
    for name, parameter in network.named_parameters():
        if isinstance(parameter, DTensor):
            held = parameter.to_local()
            held.copy_(weights.rows(name, held_rows(parameter)))
        else:
            parameter.copy_(weights.rows(name, slice(0, len(parameter))))


def held_rows(parameter: DTensor) -> slice:
    """Return which rows of a sharded parameter this process holds; the last ones may have none."""
    (dimension,) = (i for i, kind in enumerate(parameter.placements) if isinstance(kind, Shard))
    parts = parameter.device_mesh.size(dimension)
    each = -(-len(parameter) // parts)
    first = min(each * parameter.device_mesh.get_local_rank(dimension), len(parameter))
    return slice(first, first + len(parameter.to_local()))
