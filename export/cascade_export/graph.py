"""Stages and text encoders as ONNX graphs: one per architecture, its weights in a file beside it.

`torch.export` traces the network, `torch.onnx` translates it to opset 21 (the first whose
GroupNormalization takes one gain per channel; in bf16 to 22, the first whose convolutions know the
type), `passes.clean` tidies it without touching a parameter. The graph holds no weights: each
initializer that is a parameter points into `weights.safetensors`, at the same place for every
fine-tune.

Shapes: `B` batch, `L` text tokens, `D` width of the text encoder, `H W` height and width.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn
from torch.export import Dim, export

from cascade.config.stage import StageConfig
from cascade.config.unet import UNetConfig
from cascade.errors import UserError
from cascade.files import require_writable, write_bytes
from cascade.model.example import example_inputs
from cascade.model.unet import IMAGE_CHANNELS
from cascade.quiet import quiet
from cascade.stage import Stage, skeleton
from cascade.tensors import Header
from cascade.text.modes import hold
from cascade.text.t5 import TextEncoder
from cascade_export import operators, passes
from cascade_export.precision import DEFAULT_ISLANDS, DTYPES, Precision, cast, cast_encoder
from cascade_export.weights import WEIGHTS, digest, places, write_state

OPSETS: Final[dict[Precision, int]] = {"fp32": 21, "fp16": 21, "bf16": 22}
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
        name: as in `cascade.diffusion.denoiser.Network`.
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
        path: the ONNX file.
        sha256: of the ONNX file, which holds no weights.
        inputs: in the order of the network's call.
        outputs: one.
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
        if not outputs or any(_place(tensor) not in ("", WEIGHTS) for tensor in graph.initializer):
            raise UserError(f"{path} is no graph of this project's; export the cascade again.")
        return cls(path, digest(path), inputs, outputs)

    @property
    def weights(self) -> Path:
        """The file that the graph's initializers point into."""
        return self.path.with_name(WEIGHTS)

    @cached_property
    def parameters(self) -> Mapping[str, Header]:
        """Type and shape of every parameter, by name."""
        return {
            tensor.name: Header(_FLOATS[tensor.data_type], tuple(tensor.dims))
            for tensor in _load(self.path).graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }

    def check(self, config: StageConfig, precision: Precision) -> None:
        """Make sure that this is the graph of a stage's network.

        Raises:
            UserError: it is of another network or another precision.
        """
        network = skeleton(config).state_dict()
        held = {name: header.shape for name, header in self.parameters.items()}
        wanted = {name: tuple(value.shape) for name, value in network.items()}
        dims = {spec.name: spec.dims for spec in self.inputs}
        types = {header.dtype for header in self.parameters.values()} - {torch.float32}
        if held != wanted or dims != _stage_dims(config.unet):
            raise UserError(
                f"{self.path} is not the graph of stage '{config.name}' as its settings are; "
                "export the cascade again."
            )
        if types != {DTYPES[precision]} - {torch.float32}:
            raise UserError(f"{self.path} is not in {precision}; export the cascade again.")


def export_stage(
    stage: Stage,
    folder: Path,
    precision: Precision = "fp32",
    islands: Collection[str] = DEFAULT_ISLANDS,
) -> Graph:
    """Write a stage's network as `graph.onnx` and `weights.safetensors`.

    Batch, text length, height and width are dynamic; the latter two are multiples of the network's
    factor.

    Args:
        stage: around a `UNet` in float32.
        folder: of the two files.
        precision: of weights and arithmetic; inputs and output are float32 in all.
        islands: modules that stay in fp32, see `precision.cast`.

    Raises:
        TypeError: the stage runs on an engine.
        UserError: an island names no module, a weight is no number in the precision, or the disk
            is full.
    """
    require_writable(folder)
    network = cast(stage.network, precision, islands)
    config = stage.config.unet
    channels = IMAGE_CHANNELS * (1 + config.learned_variance)
    return _write(
        network,
        _example(config, next(network.parameters()).device),
        _stage_dims(config),
        {"out": ("batch", channels, "height", "width")},
        config.factor,
        OPSETS[precision],
        folder,
    )


def export_text_encoder(encoder: TextEncoder, folder: Path, precision: Precision = "fp32") -> Graph:
    """Write a text encoder as `graph.onnx` and `weights.safetensors`.

    Its inputs are `ids`, B L int64, and `mask`, B L int64, 1 at real tokens; its output is
    `embedding`, B L D float32. What is masked is not zeroed: `TextEncoder.embed` does that.

    Args:
        encoder: held in any mode; the weights are read from its files again.
        folder: of the two files.
        precision: of weights and arithmetic; see `precision.ENCODER_ISLANDS`.
    """
    require_writable(folder)
    held, _ = hold(encoder.files, "float32", torch.device("cpu"))
    network = cast_encoder(held, precision)
    ids = torch.ones(2, 5, dtype=torch.int64)
    dims: Dims = ("batch", "length")
    return _write(
        network,
        {"input_ids": ids, "attention_mask": ids.clone()},
        {"ids": dims, "mask": dims},
        {"embedding": ("batch", "length", encoder.width)},
        1,
        OPSETS[precision],
        folder,
    )


def _stage_dims(config: UNetConfig) -> dict[str, Dims]:
    image: Dims = ("batch", IMAGE_CHANNELS, "height", "width")
    dims: dict[str, Dims] = {
        "x": image,
        "t": ("batch",),
        "text": ("batch", "length", config.text_width),
        "text_mask": ("batch", "length"),
    }
    return dims | ({"low_res": image, "aug": ("batch",)} if config.low_res else {})


def _example(config: UNetConfig, device: torch.device) -> dict[str, Tensor]:
    """A call's arguments, of shapes that the tracer does not take for constants, as of 1."""
    with device:
        return example_inputs(config, 2, (4 * config.factor, 6 * config.factor), 5)


def _write(
    network: nn.Module,
    example: Mapping[str, Tensor],
    inputs: Mapping[str, Dims],
    outputs: Mapping[str, Dims],
    factor: int,
    opset: int,
    folder: Path,
) -> Graph:
    """Trace, translate, tidy and write; `example` holds the call's arguments in inputs' order."""
    state = network.state_dict()
    model = _translate(network, example, inputs, list(outputs), factor, opset)
    passes.clean(model, state)
    passes.name_interface(model, inputs, outputs)
    headers = {name: Header(value.dtype, tuple(value.shape)) for name, value in state.items()}
    write_state(state, headers, folder / WEIGHTS)
    passes.point_outside(model, places(folder / WEIGHTS), WEIGHTS)
    write_bytes(passes.serialise(model), folder / GRAPH)
    onnx.checker.check_model(str(folder / GRAPH), full_check=True)
    return Graph.open(folder / GRAPH)


def _translate(
    network: nn.Module,
    example: Mapping[str, Tensor],
    inputs: Mapping[str, Dims],
    outputs: list[str],
    factor: int,
    opset: int,
) -> ir.Model:
    """The network as an ONNX model that shares its weights' memory, not yet tidied."""
    sizes: dict[int | str, Any] = {"batch": Dim("batch"), "length": Dim("length")}
    sizes |= {side: factor * Dim(f"{side}s") for side in ("height", "width")}
    shapes = {
        argument: {axis: sizes[dim] for axis, dim in enumerate(dims) if isinstance(dim, str)}
        for argument, dims in zip(example, inputs.values(), strict=True)
    }
    with torch.no_grad(), quiet("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = export(network, (), dict(example), dynamic_shapes=shapes, strict=False)
        if any(str(node.target).startswith("cascade.") for node in program.graph.nodes):
            program = program.run_decompositions(operators.decompositions())
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=outputs,
            custom_translation_table=operators.translations(),
            verbose=False,
        )
    if onnx_program is None:
        raise RuntimeError("torch.onnx gave no program")
    model: ir.Model = onnx_program.model
    return model


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise UserError(f"{path} is missing; export the cascade again.")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError:
        raise UserError(f"{path} is damaged; export the cascade again.") from None


def _place(tensor: onnx.TensorProto) -> str:
    """The file in which a tensor lies; empty if that is the graph itself."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dims = tuple(dim.dim_param or int(dim.dim_value) for dim in kind.shape.dim)
    return TensorSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)
