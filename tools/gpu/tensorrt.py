"""The part `tensorrt`: full TensorRT, which no package registry carries whole, where it is."""

from collections.abc import Callable

from cascade.errors import UserError
from cascade_export.engines.tensorrt import TensorRTEngine
from cascade_export.engines.tensorrt_session import TensorRTDevice
from cascade_export.precision import Precision
from cascade_export.targets import load_module, resolve_targets
from gpu.engines import exported, latency, require_time, stage_named
from gpu.export import PRECISIONS, STAGES, run_plan, with_plan
from gpu.pieces import Context, NotCheckedError, Piece


def tensorrt_pieces(context: Context) -> list[Piece]:
    """Build, parity and refit of a small stage; then the latency of the published shapes."""
    pieces = [Piece(f"parity {precision}", _parity(precision)) for precision in PRECISIONS]
    return [*pieces, *(Piece(f"latency {name}", _latency(name)) for name in STAGES)]


def _parity(precision: Precision) -> Callable[[Context], str]:
    def run(context: Context) -> str:
        targets = _targets(precision)
        stage = stage_named("if-i-m", context, small=True)
        files = exported(stage, precision, context)
        planned = with_plan("tensorrt", targets, files, context.output / "engines")
        return run_plan("tensorrt", planned, stage, context)

    return run


def _latency(name: str) -> Callable[[Context], str]:
    def run(context: Context) -> str:
        targets = _targets("fp16")
        require_time(context)
        stage = stage_named(name, context)
        files = exported(stage, "fp16", context)
        planned = with_plan("tensorrt", targets, files, context.output / "engines")
        engine = TensorRTEngine(planned, TensorRTDevice("tensorrt", context.device))
        return latency(f"tensorrt latency {name}", files, stage, {"tensorrt": engine}, context)

    return run


def _targets(precision: Precision) -> tuple[int, ...]:
    try:
        load_module("tensorrt")
        return resolve_targets("tensorrt", (), precision)
    except UserError as error:
        raise NotCheckedError(str(error)) from None
