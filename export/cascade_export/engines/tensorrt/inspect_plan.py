"""Figures of a plan that need no GPU: types of numbers and planned memory.

None of it says that the plan runs or is right; it catches what can be caught before a GPU is
rented, such as a layer in another type than was meant or gigabytes of activations.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cascade.config.base import Frozen

_MEMORY = {
    "weights": re.compile(r"Total Weights Memory: (\d+)"),
    "activations": re.compile(r"Total Activation Memory: (\d+)"),
    "scratch": re.compile(r"Max Scratch Memory: (\d+)"),
}


class LayerCount(Frozen):
    """The number of layers of one type that compute in one type of number."""

    layer: str
    dtype: str
    count: int


class PlannedMemory(Frozen):
    """Bytes that a plan takes on the GPU at its largest shapes; None where the log has none."""

    weights: int | None = None
    activations: int | None = None
    scratch: int | None = None


def count_layers(network: Any) -> tuple[LayerCount, ...]:
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
    sizes = {name: [int(n) for n in line.findall(text)] for name, line in _MEMORY.items()}
    return PlannedMemory(**{name: max(numbers, default=None) for name, numbers in sizes.items()})


def _name(value: Any) -> str:
    return str(value).rpartition(".")[2]
