"""Opening engines by their kind: a package is imported when an engine is, never before."""

from collections.abc import Callable, Sequence

import torch

from cascade.config.engine import EngineOptions
from cascade_export.engines import engine_class
from cascade_export.engines.base import Engine
from cascade_export.engines.version import StageFiles
from cascade_export.graph.numerics import Precision


def open_engines(
    kind: str,
    stages: Sequence[StageFiles],
    device: torch.device | str = "cpu",
    options: EngineOptions | None = None,
    max_memory: int | None = None,
) -> Sequence[Engine]:
    """Open the engines of a cascade's stages, which share what they can.

    Args:
        max_memory: bytes for weights; those of stages that wait leave where all do not fit.

    Raises:
        UserError: a package is missing, a stage cannot run on this device, or is too large.
    """
    opened = engine_opener(kind, device, options, max_memory)
    return [opened(files) for files in stages]


def engine_opener(
    kind: str,
    device: torch.device | str = "cpu",
    options: EngineOptions | None = None,
    max_memory: int | None = None,
) -> Callable[[StageFiles], Engine]:
    """Return what opens engines one by one; the arguments are as in `open_engines`.

    Raises:
        UserError: the engine has no use for an option.
    """
    chosen, options = engine_class(kind), options or EngineOptions()
    chosen.check_options(options)
    return chosen.opener(torch.device(device), options, max_memory)


def open_engine(
    kind: str,
    files: StageFiles,
    device: torch.device | str = "cpu",
    options: EngineOptions | None = None,
) -> Engine:
    """Open one stage's engine; see `open_engines`."""
    return open_engines(kind, [files], device, options)[0]


def stand_in(precision: Precision) -> str:
    """Return an engine that takes the same graph, or at least the weights, on any CPU."""
    names = ("onnxruntime", "torch")
    return next(name for name in names if precision in engine_class(name).precisions["cpu"])


def runner(kind: str, precision: Precision) -> str:
    """Return what can run an engine's graphs on this machine: itself, or a stand-in."""
    return kind if engine_class(kind).runs_here() else stand_in(precision)
