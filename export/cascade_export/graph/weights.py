"""Weights beside a graph: one plain safetensors file, in which the graph's initializers point.

Every file of one graph has the same tensors in the same types, hence the same header and the same
offsets: a fine-tune takes the place of another by its file name alone.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cascade.errors import UserError
from cascade.formats.weights import Weights
from cascade.formats.weights import write_weights as write_safetensors
from cascade.tensors import Header, weight_shapes
from cascade_export.graph.precision import narrowed

WEIGHTS = "weights.safetensors"
"""The name of a graph's own weights; what its external data refers to."""

DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}


class Parametrized(Protocol):
    """A graph, as far as its weights are concerned."""

    @property
    def parameters(self) -> Mapping[str, Header]:
        """Return types and shapes of what it reads from a weights file, by name."""


class TensorSpan(NamedTuple):
    """The position of a tensor in a safetensors file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""

    size: int
    """Bytes."""


def tensor_spans(path: Path) -> dict[str, TensorSpan]:
    """Read where the tensors of a safetensors file lie; reads its header alone."""
    weight_shapes(path)  # whole: safetensors checks the header against the file's size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    spans = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"'{name}' in {path} is of type {entry['dtype']}; export the weights again."
            )
        begin, end = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        spans[name] = TensorSpan(dtype, shape, 8 + length + begin, end - begin)
    return spans


def write_state(state: Mapping[str, Tensor], headers: Mapping[str, Header], path: Path) -> str:
    """Write tensors, each cast to the type that `headers` says; return the file's sha256.

    One tensor is actual in its new type at a time, so a file may be larger than memory.
    """
    write_safetensors(
        path, headers, lambda name: narrowed(name, state[name], headers[name].dtype), {}
    )
    return digest(path)


def write_weights(state: Mapping[str, Tensor], path: Path, graph: Parametrized) -> str:
    """Write a network's weights for a graph, cast to the graph's types.

    Returns:
        The file's sha256.
    """
    headers = graph.parameters
    _check(
        {name: tuple(value.shape) for name, value in state.items()},
        {name: header.shape for name, header in headers.items()},
        f"The weights for {path}",
    )
    return write_state(state, headers, path)


def check_weights(path: Path, graph: Parametrized) -> dict[str, TensorSpan]:
    """Check that a weights file fits a graph, and return where its tensors lie."""
    spans = tensor_spans(path)
    headers = graph.parameters
    _check(
        {name: place.shape for name, place in spans.items()},
        {name: header.shape for name, header in headers.items()},
        str(path),
    )
    for name, header in headers.items():
        if spans[name].dtype != header.dtype:
            raise UserError(
                f"'{name}' in {path} is {_short(spans[name].dtype)} but the graph's is "
                f"{_short(header.dtype)}; export the fine-tune into this bundle again."
            )
    return spans


def require_numbers(path: Path) -> None:
    """Check that a weights file holds numbers, a tensor at a time."""
    Weights(dict.fromkeys(weight_shapes(path), path)).check()


def digest(path: Path) -> str:
    """Return a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(
    actual: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], whose: str
) -> None:
    for word, names in (
        ("lacks", wanted.keys() - actual.keys()),
        ("has the unknown", actual.keys() - wanted.keys()),
    ):
        if names:
            raise UserError(
                f"{whose} {word} {min(names)} and {len(names) - 1} other tensors; take the weights "
                "of a fine-tune of the exported cascade."
            )
    for name, shape in wanted.items():
        if actual[name] != shape:
            raise UserError(
                f"{whose} has '{name}' of shape {actual[name]} where the graph's is {shape}; take "
                "the weights of a fine-tune of the exported cascade."
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
