"""Weights files: what fits a graph is written in its types, anything else is refused."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascade.errors import UserError
from cascade.tensors import Header
from cascade_export.graph.graph import Graph
from cascade_export.graph.weights import check_weights, digest, tensor_spans, write_weights


class FakeGraph(Graph):
    """A graph of three parameters, one of them in half precision."""

    parameters: ClassVar = {
        "norm.weight": Header(torch.float32, (4,)),
        "conv.weight": Header(torch.float16, (4, 3)),
        "conv.bias": Header(torch.float16, (4,)),
    }


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return FakeGraph(tmp_path / "graph.onnx", "", (), ())


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {
        "conv.bias": torch.randn(4),
        "conv.weight": torch.randn(4, 3),
        "norm.weight": torch.randn(4),
    }


def test_weights_are_cast_to_the_graphs_types(
    graph: Graph, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "tuned.safetensors"
    sha256 = write_weights(state, path, graph)
    assert sha256 == digest(path)
    held = load_file(path)
    for name, header in graph.parameters.items():
        assert torch.equal(held[name], state[name].to(header.dtype))
    assert check_weights(path, graph).keys() == state.keys()


def test_every_file_of_a_graph_has_the_same_layout(
    graph: Graph, state: dict[str, Tensor], tmp_path: Path
) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    write_weights(state, one, graph)
    write_weights({name: -value for name, value in reversed(state.items())}, other, graph)
    assert tensor_spans(one) == tensor_spans(other)
    assert digest(one) != digest(other)


def test_a_place_is_where_the_bytes_lie(
    graph: Graph, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "tuned.safetensors"
    write_weights(state, path, graph)
    for name, place in tensor_spans(path).items():
        raw = path.read_bytes()[place.offset : place.offset + place.size]
        found = torch.frombuffer(bytearray(raw), dtype=place.dtype).view(place.shape)
        assert torch.equal(found, state[name].to(place.dtype))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv.bias": None}, "lacks conv.bias"),
        ({"conv.extra": torch.zeros(1)}, "has the unknown conv.extra"),
        ({"conv.weight": torch.zeros(3, 4)}, r"'conv.weight' of shape \(3, 4\)"),
    ],
)
def test_other_weights_are_refused_before_anything_is_written(
    graph: Graph,
    state: dict[str, Tensor],
    tmp_path: Path,
    change: dict[str, Tensor | None],
    message: str,
) -> None:
    changed = {name: value for name, value in {**state, **change}.items() if value is not None}
    path = tmp_path / "tuned.safetensors"
    with pytest.raises(UserError, match=message):
        write_weights(changed, path, graph)
    assert not path.exists()
    save_file({name: value.half() for name, value in changed.items()}, path)
    with pytest.raises(UserError, match=message):
        check_weights(path, graph)


def test_weights_of_another_precision_are_refused(
    graph: Graph, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "tuned.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match="is float32 but the graph's is float16"):
        check_weights(path, graph)


def test_a_truncated_file_is_refused(
    graph: Graph, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "tuned.safetensors"
    write_weights(state, path, graph)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="damaged"):
        check_weights(path, graph)


def test_a_type_that_no_graph_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    save_file({"conv.bias": torch.zeros(2, dtype=torch.float64)}, path)
    with pytest.raises(UserError, match="type F64"):
        tensor_spans(path)
