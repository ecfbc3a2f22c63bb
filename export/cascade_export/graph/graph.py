"""An exported graph on disk: its interface, its parameters, and whether it is a stage's.

Shapes: `B` batch, `L` text tokens, `D` width of the text encoder, `H W` height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.config.unet import UNetConfig
from cascade.errors import UserError
from cascade.model.unet import IMAGE_CHANNELS
from cascade.stage import meta_network
from cascade.tensors import Header
from cascade_export.graph.numerics import Precision
from cascade_export.graph.precision import DTYPES
from cascade_export.graph.weights import WEIGHTS, digest

GRAPH: Final = "graph.onnx"

Dims = tuple[int | str, ...]

_FLOATS: Final = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        dtype: numpy's name of the type: float32, int64 or bool.
        dims: sizes, or the names of dynamic ones: batch, length, height, width.
    """

    name: str
    dtype: str
    dims: Dims


@dataclass(frozen=True)
class Graph:
    """An exported architecture on disk.

    Attributes:
        sha256: of the ONNX file, which holds no weights.
    """

    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def open(cls, path: Path | str) -> "Graph":
        """Read an exported graph; its weights need not be there.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = Path(path)
        graph = _load(path).graph
        inputs, outputs = (tuple(map(_spec, part)) for part in (graph.input, graph.output))
        if not outputs or any(
            _location(tensor) not in ("", WEIGHTS) for tensor in graph.initializer
        ):
            raise UserError(f"{path} is no graph of this project's; export the cascade again.")
        return cls(path, digest(path), inputs, outputs)

    @property
    def weights(self) -> Path:
        """Return the file that the graph's initializers point into."""
        return self.path.with_name(WEIGHTS)

    @cached_property
    def parameters(self) -> Mapping[str, Header]:
        """Return type and shape of every parameter, by name."""
        return {
            tensor.name: Header(_FLOATS[tensor.data_type], tuple(tensor.dims))
            for tensor in _load(self.path).graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }

    def check(self, config: StageConfig, precision: Precision) -> None:
        """Check that this is the graph of a stage's network."""
        network = meta_network(config).state_dict()
        actual = {name: header.shape for name, header in self.parameters.items()}
        wanted = {name: tuple(value.shape) for name, value in network.items()}
        dims = {spec.name: spec.dims for spec in self.inputs}
        types = {header.dtype for header in self.parameters.values()} - {torch.float32}
        if actual != wanted or dims != stage_dims(config.unet):
            raise UserError(
                f"{self.path} is not the graph of stage '{config.name}' as its settings are; "
                "export the cascade again."
            )
        if types != {DTYPES[precision]} - {torch.float32}:
            raise UserError(f"{self.path} is not in {precision}; export the cascade again.")


def stage_dims(config: UNetConfig) -> dict[str, Dims]:
    """Return a network's inputs by name, in the order of its call, with their dimensions."""
    image: Dims = ("batch", IMAGE_CHANNELS, "height", "width")
    dims: dict[str, Dims] = {
        "x": image,
        "t": ("batch",),
        "text": ("batch", "length", config.text_width),
        "text_mask": ("batch", "length"),
    }
    return dims | ({"low_res": image, "aug": ("batch",)} if config.low_res else {})


def feeds(
    x: Tensor,
    t: Tensor,
    text: Tensor,
    text_mask: Tensor,
    low_res: Tensor | None = None,
    aug: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return a network call's arguments by the names of the graph's inputs."""
    call = {"x": x, "t": t, "text": text, "text_mask": text_mask}
    return call if low_res is None or aug is None else call | {"low_res": low_res, "aug": aug}


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise UserError(f"{path} is missing; export the cascade again.")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError:
        raise UserError(f"{path} is damaged; export the cascade again.") from None


def _location(tensor: onnx.TensorProto) -> str:
    """Return the file that holds a tensor; empty if that is the graph itself."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dims = tuple(dim.dim_param or int(dim.dim_value) for dim in kind.shape.dim)
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)
