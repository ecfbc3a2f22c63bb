"""Stages and text encoders as ONNX graphs: one per architecture, its weights in a file beside it.

`torch.export` traces the network, `torch.onnx` translates it to opset 20 (in bf16 to 22, the first
whose convolutions know the type), `passes.clean` tidies it without touching a parameter. The graph
holds no weights: each initializer that is a parameter points into `weights.safetensors`, at the
same place for every fine-tune.

Shapes: `B` batch, `L` text tokens, `D` width of the text encoder, `H W` height and width.
"""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from cascade.config.stage import StageConfig
from cascade.files import require_writable, write_bytes
from cascade.model.example import example_inputs
from cascade.model.unet import IMAGE_CHANNELS
from cascade.progress import silence
from cascade.stage import Stage, meta_network
from cascade.tensors import Header
from cascade.text.encoder import TextEncoder, load_model
from cascade_export.graph import operators, passes
from cascade_export.graph.graph import GRAPH, Dims, Graph, stage_dims
from cascade_export.graph.numerics import Precision
from cascade_export.graph.precision import DEFAULT_ISLANDS, cast
from cascade_export.graph.weights import WEIGHTS, tensor_spans, write_state

# 20 is the first with Gelu. From 21 on a quantization has a type, which ONNX Runtime 1.31 leaves as
# it was where it moves one past a norm's reshape, and then makes it unsigned: int8 would not open.
OPSETS: Final[dict[Precision, int]] = {"fp32": 20, "fp16": 20, "bf16": 22}


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
        precision: of weights and arithmetic; inputs and output are float32 in all.
        islands: modules that stay in fp32, see `precision.cast`.

    Raises:
        TypeError: the stage runs on an engine.
        UserError: an island names no module, a weight is no number in the precision, or the disk
            is full.
    """
    write_stage_weights(stage, folder, precision, islands)
    return trace_stage(stage.config, folder, precision, islands)


def write_stage_weights(
    stage: Stage, folder: Path, precision: Precision, islands: Collection[str]
) -> None:
    """Write a stage's `weights.safetensors`; arguments and errors are those of `export_stage`."""
    require_writable(folder)
    _write_weights(cast(stage.network, precision, islands), folder)


def trace_stage(
    config: StageConfig, folder: Path, precision: Precision, islands: Collection[str]
) -> Graph:
    """Write a stage's `graph.onnx` beside its weights; arguments are as of `export_stage`.

    It follows from the architecture: of the weights names, types and places are read alone.
    """
    network = meta_network(config)
    # Zeros take no memory before something is written there.
    zeros = {name: torch.zeros(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(zeros, assign=True)
    channels = IMAGE_CHANNELS * (1 + config.unet.learned_variance)
    return _write_graph(
        cast(network, precision, islands),
        # Of shapes that the tracer does not take for constants, as 1.
        example_inputs(config.unet, 2, (4 * config.unet.factor, 6 * config.unet.factor), 5),
        stage_dims(config.unet),
        {"out": ("batch", channels, "height", "width")},
        config.unet.factor,
        OPSETS[precision],
        folder,
    )


def export_text_encoder(encoder: TextEncoder, folder: Path) -> Graph:
    """Write a text encoder as `graph.onnx` and `weights.safetensors`.

    Its inputs are `ids`, B L int64, and `mask`, B L int64, 1 at real tokens; its output is
    `embedding`, B L D float32. What is masked is not zeroed: `TextEncoder.embed` does that.

    Args:
        encoder: held in any mode; the weights are read from its files again.
    """
    require_writable(folder)
    network, _ = load_model(encoder.files, "float32", torch.device("cpu"))
    ids = torch.ones(2, 5, dtype=torch.int64)
    dims: Dims = ("batch", "length")
    _write_weights(network, folder)
    return _write_graph(
        network,
        {"input_ids": ids, "attention_mask": ids.clone()},
        {"ids": dims, "mask": dims},
        {"embedding": ("batch", "length", encoder.width)},
        1,
        OPSETS["fp32"],
        folder,
    )


def _write_weights(network: nn.Module, folder: Path) -> None:
    state = network.state_dict()
    headers = {name: Header(value.dtype, tuple(value.shape)) for name, value in state.items()}
    write_state(state, headers, folder / WEIGHTS)


def _write_graph(
    network: nn.Module,
    example: Mapping[str, Tensor],
    inputs: Mapping[str, Dims],
    outputs: Mapping[str, Dims],
    factor: int,
    opset: int,
    folder: Path,
) -> Graph:
    """Trace, translate, tidy and write, beside the weights.

    Args:
        example: the call's arguments, in inputs' order.
    """
    model = _translate(network, example, inputs, list(outputs), factor, opset)
    passes.clean(model, network.state_dict())
    passes.name_interface(model, inputs, outputs)
    passes.point_outside(model, tensor_spans(folder / WEIGHTS), WEIGHTS)
    write_bytes(passes.serialize(model), folder / GRAPH)
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
    """Translate the network to an ONNX model that shares its weights' memory, not yet tidied."""
    sizes: dict[int | str, Any] = {"batch": Dim("batch"), "length": Dim("length")}
    sizes |= {side: factor * Dim(f"{side}s") for side in ("height", "width")}
    shapes = {
        argument: {axis: sizes[dim] for axis, dim in enumerate(dims) if isinstance(dim, str)}
        for argument, dims in zip(example, inputs.values(), strict=True)
    }
    with torch.no_grad(), silence("torch.onnx"), warnings.catch_warnings():
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
