"""What a build tells about its plan without a GPU: types, planned memory, whose weights it holds.

None of it says that the plan runs or is right; it catches what can be caught before a GPU is
rented, such as a layer in another type than was meant or gigabytes of activations.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from cascade.config.base import Frozen

_MEMORY = {
    "weights": re.compile(r"Total Weights Memory: (\d+)"),
    "activations": re.compile(r"Total Activation Memory: (\d+)"),
    "scratch": re.compile(r"Max Scratch Memory: (\d+)"),
}
_PROBES = 64
_ENOUGH = 64  # values; fewer could stand in a plan by chance


class LayerCount(Frozen):
    """How many layers of one type compute in one type of number."""

    layer: str
    dtype: str
    count: int


class PlannedMemory(Frozen):
    """What the builder says a plan takes on the GPU at its largest shapes, bytes; None: untold."""

    weights: int | None = None
    activations: int | None = None
    scratch: int | None = None


class WeightsFound(Frozen):
    """How many of the probed tensors stand in a plan byte for byte."""

    found: int
    probed: int


def layer_census(network: Any) -> tuple[LayerCount, ...]:
    """Count an `INetworkDefinition`'s layers by type and by the type of their first output."""
    layers = (network.get_layer(index) for index in range(network.num_layers))
    counts = Counter((_name(each.type), _name(each.get_output(0).dtype)) for each in layers)
    return tuple(
        LayerCount(layer=layer, dtype=dtype, count=count)
        for (layer, dtype), count in sorted(counts.items())
    )


def planned_memory(log: Iterable[str]) -> PlannedMemory:
    """Read the builder's log; of a line that it wrote several times the largest counts."""
    text = "\n".join(log)
    told = {name: [int(n) for n in line.findall(text)] for name, line in _MEMORY.items()}
    return PlannedMemory(**{name: max(numbers, default=None) for name, numbers in told.items()})


def weights_in_plan(plan: bytes, weights: Path) -> WeightsFound:
    """Look for a checkpoint's vectors in a plan.

    Matrices and filters are re-arranged for the GPU; the vectors that are kept as they are tell a
    tuned checkpoint's plan from the base's.

    Args:
        plan: as serialised.
        weights: a safetensors file; only vectors whose values differ among themselves are sought,
            since those of an untrained norm stand everywhere.
    """
    probes = list(_vectors(weights).values())
    return WeightsFound(found=sum(data in plan for data in probes), probed=len(probes))


def _vectors(weights: Path) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 -- the file is no mapping
            if len(found) == _PROBES:
                break
            shape = file.get_slice(name).get_shape()
            if len(shape) == 1 and shape[0] >= _ENOUGH:
                value = file.get_tensor(name)
                if not bool((value == value[0]).all()):
                    found[name] = value.view(torch.uint8).numpy().tobytes()
    return found


def _name(value: Any) -> str:
    """The last part of an enumeration's name."""
    return str(value).rpartition(".")[2]
