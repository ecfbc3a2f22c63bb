"""Opening engines by their kind: a package is imported when an engine is, never before."""

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from cascade_export.engines.base import Engine, EngineKind, EngineOptions, StageFiles
from cascade_export.engines.swap_check import require_likeness


def open_engines(
    kind: EngineKind,
    stages: Sequence[StageFiles],
    device: torch.device | str = "cpu",
    options: EngineOptions | None = None,
    max_memory: int | None = None,
) -> list[Engine]:
    """Open the engines of a cascade's stages, which share what they can.

    Args:
        kind: which engine.
        stages: in the cascade's order.
        device: where they run.
        options: how they run.
        max_memory: bytes for weights; those of stages that wait leave where all do not fit.

    Raises:
        UserError: a package is missing, a stage cannot run on this device, or is too large.
    """
    place, options = torch.device(device), options or EngineOptions()
    if kind == "tensorrt" or kind == "tensorrt-rtx":
        from cascade_export.engines.tensorrt.engine import TensorRTEngine
        from cascade_export.engines.tensorrt.session import TensorRTDevice

        options.check(kind)
        shared = TensorRTDevice(kind, place, max_memory=max_memory)
        return [TensorRTEngine(files, shared, partial(_check_swap, files)) for files in stages]
    if max_memory is None:
        return [open_engine(kind, files, place, options) for files in stages]
    from cascade_export.engines.residency import Residency
    from cascade_export.engines.resident import ResidentEngine

    def opened(files: StageFiles) -> Engine:
        return open_engine(kind, files, place, options)

    residency, lock = Residency(max_memory), threading.RLock()
    return [ResidentEngine(files, place, opened, residency, lock) for files in stages]


def open_engine(
    kind: Literal["torch", "onnxruntime", "openvino"],
    files: StageFiles,
    device: torch.device | str = "cpu",
    options: EngineOptions | None = None,
) -> Engine:
    """Open one stage's engine, of a kind that shares nothing between stages.

    Raises:
        UserError: its package is missing, or it cannot run this stage on this device.
    """
    place, options = torch.device(device), options or EngineOptions()
    match kind:
        case "torch":
            from cascade_export.engines.torch import TorchEngine

            return TorchEngine(files, place, options)
        case "onnxruntime":
            from cascade_export.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(files, place, options)
        case "openvino":
            from cascade_export.engines.openvino import OpenVinoEngine

            return OpenVinoEngine(files, place, options)


def _check_swap(files: StageFiles, engine: Engine, weights: Path) -> None:
    """Compare an engine's answer with that of the same graph and weights on the CPU."""
    tuned = files.with_weights(weights)
    other = open_engine("torch" if files.precision == "bf16" else "onnxruntime", tuned)
    require_likeness(engine, other, tuned)


def default_device(kind: EngineKind) -> str:
    """Where an engine runs unless one is told: on the GPU if there is one that it can use."""
    if kind == "onnxruntime":
        from cascade_export.engines.onnxruntime import has_cuda

        usable = has_cuda()
    else:
        usable = kind != "openvino"
    return "cuda" if usable and torch.cuda.is_available() else "cpu"
