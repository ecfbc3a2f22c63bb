"""Convolutions in int8 or fp8: pairs of QuantizeLinear and DequantizeLinear around each of them.

The weights stay floats under their own names, quantized inside the graph (engines fold that when
they load), so a quantized graph reads the weights file of the plain one and takes fine-tunes as it
does; its scales are those of the weights and prompts that it was calibrated with.

Weights in int8 use half of their range, -64 to 64: on CPUs without VNNI, ONNX Runtime and OpenVINO
add two products of an unsigned activation and a weight in 16 bits, which 2 x 255 x 127 overflows.

The first and the last convolution, the conditioning and the attention stay in float: most of the
work of a pixel U-Net is in its blocks' convolutions, most of the harm outside of them.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import Tensor, nn

from cascade.errors import UserError
from cascade.files import copy_file, scratch, write_bytes
from cascade.pipeline import Cascade
from cascade.progress import silence
from cascade_export.graph import passes
from cascade_export.graph.graph import GRAPH, Graph, feeds
from cascade_export.graph.numerics import Quantization
from cascade_export.graph.weights import WEIGHTS, check_weights, require_numbers

Inputs: TypeAlias = Mapping[str, Tensor]

FLOAT_CONVOLUTIONS: Final = ("conv_in.weight", "conv_out.weight")
_INT8_MAX: Final = 127
_FP8_MAX: Final = 448  # of E4M3 without infinities


def calibration_inputs(
    cascade: Cascade, prompts: Sequence[str], calls: int = 16
) -> dict[str, list[Inputs]]:
    """Sample one image per prompt with every stage and keep the networks' inputs.

    Args:
        prompts: sampled with the seeds 0, 1, 2, ... and each stage's own sampler.
        calls: kept of each stage, spread evenly over the trajectory.

    Returns:
        Stage name to the arguments of `calls` calls, on the CPU.
    """
    recorders = [_Recorder(stage.network) for stage in cascade.stages]
    stages = [
        stage.with_network(recorder)
        for stage, recorder in zip(cascade.stages, recorders, strict=True)
    ]
    Cascade(cascade.manifest, cascade.encoder, stages).sample(prompts)
    inputs = {}
    for stage, recorder in zip(stages, recorders, strict=True):
        step = max(1, len(recorder.calls) // calls)
        inputs[stage.config.name] = recorder.calls[::step][:calls]
    return inputs


def quantize(
    graph: Graph, inputs: Sequence[Inputs], folder: Path, kind: Quantization = "int8"
) -> Graph:
    """Write a quantized graph, and a copy of the plain one's weights.

    Activations have one symmetric scale per tensor, weights one per output channel.

    Args:
        graph: of a stage, in fp32 or fp16, with its weights beside it.
        folder: of `graph.onnx` and `weights.safetensors`; not the plain graph's.
        kind: int8 runs in ONNX Runtime and TensorRT, fp8 (E4M3) in TensorRT on compute capability
            8.9 and later only.

    Raises:
        UserError: there is nothing to calibrate with, or the graph is in bf16, which ONNX Runtime
            cannot run on a CPU and so not calibrate; the graph's weights are damaged, or the disk
            is full.
    """
    if not inputs:
        raise UserError("Quantisation has no inputs to calibrate with; give at least one prompt.")
    if any(header.dtype == torch.bfloat16 for header in graph.parameters.values()):
        raise UserError("A bf16 graph cannot be calibrated here; quantize an fp32 or fp16 one.")
    require_numbers(graph.weights)
    with scratch() as aside:
        quantized = aside / GRAPH
        _calibrate(graph, inputs, quantized, half_range=kind == "int8")
        model = onnx.load(quantized)
    if kind == "fp8":
        _to_fp8(model)
    copy_file(graph.weights, folder / WEIGHTS)
    tidy = ir.serde.deserialize_model(model)
    passes.point_outside(tidy, check_weights(folder / WEIGHTS, graph), WEIGHTS)
    write_bytes(passes.serialize(tidy), folder / GRAPH)
    return Graph.open(folder / GRAPH)


def _calibrate(graph: Graph, inputs: Sequence[Inputs], path: Path, *, half_range: bool) -> None:
    """Write the graph with its int8 pairs and all of its weights inside or beside it."""
    proto = onnx.load(graph.path, load_external_data=False).graph
    skipped = [n.name for n in proto.node if set(FLOAT_CONVOLUTIONS) & set(n.input)]
    # The quantizer advises to optimize the graph first, which would lose its names.
    with silence(""), _full_disk_reported(graph.path):
        quantize_static(
            graph.path,
            path,
            _Reader(inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=skipped,
            per_channel=True,
            reduce_range=half_range,  # of the weights alone
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "AddQDQPairToWeight": True,  # the weights stay floats under their own names
                "QuantizeBias": False,
                "WeightSymmetric": True,
            },
        )


@contextmanager
def _full_disk_reported(graph: Path) -> Iterator[None]:
    """Raise OSError on a full disk, where ONNX Runtime writes past Python and reads half a file."""
    inferred = graph.with_name(f"{graph.stem}-inferred{graph.suffix}")
    try:
        yield
    except DecodeError:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    finally:
        inferred.unlink(missing_ok=True)


def _to_fp8(model: onnx.ModelProto) -> None:
    """Turn int8 pairs into fp8 ones: the same largest magnitude, on E4M3's range."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for name in {node.input[1] for node in pairs}:
        scale = onnx.numpy_helper.to_array(tensors[name])
        wider = (scale * np.float64(_INT8_MAX / _FP8_MAX)).astype(scale.dtype)
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(wider, name))
    for name in {node.input[2] for node in pairs}:
        dims = tuple(tensors[name].dims)
        zeros = bytes(int(np.prod(dims)))
        kind = onnx.TensorProto.FLOAT8E4M3FN
        tensors[name].CopyFrom(onnx.helper.make_tensor(name, kind, dims, zeros, raw=True))


class _Recorder(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[Inputs] = []

    def forward(self, *positional: Any, **named: Any) -> Tensor:
        """Call the network; shapes as in `cascade.diffusion.denoiser.Network`."""
        call = feeds(*positional, **named)
        self.calls.append({name: value.cpu() for name, value in call.items()})
        out: Tensor = self.network(**call)
        return out


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Recorded calls as ONNX Runtime's calibration reads them."""

    def __init__(self, inputs: Sequence[Inputs]) -> None:
        self._rest = iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next call's arguments; None after the last."""
        call = next(self._rest, None)
        return None if call is None else {name: value.numpy() for name, value in call.items()}
