"""The part `export`: TensorRT for RTX, ONNX Runtime and compiled PyTorch on this GPU."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from cascade.errors import UserError
from cascade.stage import Stage
from cascade_export.build import build_plan, logger, obtain_plan, plan_fingerprint, stage_profile
from cascade_export.cache import Fingerprint, PlanCache
from cascade_export.engines import StageFiles
from cascade_export.engines.onnxruntime import check_device
from cascade_export.engines.tensorrt import TensorRTEngine
from cascade_export.engines.tensorrt_session import TensorRTDevice, check_validity
from cascade_export.precision import Precision
from cascade_export.targets import RTX_TARGETS, Kind, gpu_target, load_module
from cascade_export.weights import write_weights
from gpu.engines import checked, exported, inputs_for, latency, opened, require_time, stage_named
from gpu.pieces import Context, FailedError, NotCheckedError, Piece

STAGES = ("if-i-m", "if-ii-m")
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16")


def export_pieces(context: Context) -> list[Piece]:
    """Validity and correctness first, then the latency of the published shapes."""
    pieces = [Piece("rtx validity", _validity), Piece("rtx refit build", _refit_build)]
    for precision in PRECISIONS:
        pieces.append(Piece(f"rtx parity {precision}", rtx_parity(precision)))
    pieces += [
        Piece("onnxruntime parity", _onnxruntime),
        Piece("compiled parity", _compiled),
    ]
    return [*pieces, *(Piece(f"latency {name}", _latency(name)) for name in STAGES)]


def with_plan(kind: Kind, targets: Sequence[int], files: StageFiles, folder: Path) -> StageFiles:
    """Build a stage's plan, or take it from the cache of an earlier run."""
    fingerprint = fingerprint_of(kind, targets, files)
    stored = obtain_plan(PlanCache(folder), files.graph, files.weights, fingerprint)
    return replace(files, plan=stored.folder)


def fingerprint_of(kind: Kind, targets: Sequence[int], files: StageFiles) -> Fingerprint:
    """What a plan of one picture at a time is built from."""
    profile = stage_profile(files.config, max_batch=1)
    return plan_fingerprint(
        files.graph, files.weights_sha256, kind, targets, files.precision, profile
    )


def there_and_back(engine: TensorRTEngine, files: StageFiles, context: Context) -> str:
    """Swap to another fine-tune and back; the answer is again the first, bit for bit.

    Raises:
        FailedError: it is not, or the other fine-tune changed nothing.
    """
    inputs = inputs_for(files.config, context)
    first = engine(**inputs)
    tuned = files.graph.path.with_name("tuned.safetensors")
    state = {name: 1.01 * value for name, value in load_file(files.weights).items()}
    write_weights(state, tuned, files.graph)
    engine.swap(tuned)
    other = engine(**inputs)
    engine.swap(files.weights)
    if other.equal(first):
        raise FailedError("a swap changed nothing")
    if not engine(**inputs).equal(first):
        raise FailedError("a swap there and back does not restore the first weights")
    return "a swap there and back is exact"


def _targets(context: Context) -> tuple[int, ...]:
    """This GPU's capability where TensorRT for RTX knows it, else one that it builds for."""
    here = None if context.dry_run else gpu_target(context.device)
    return (here,) if here in RTX_TARGETS else (89,)


def _package(kind: Kind) -> None:
    try:
        load_module(kind)
    except UserError as error:
        raise NotCheckedError(str(error)) from None


def _validity(context: Context) -> str:
    """What the runtime says of a plan for this GPU; a refusal is an answer."""
    _package("tensorrt-rtx")
    files = exported(stage_named("if-i-m", context, small=True), "fp16", context)
    targets = _targets(context)
    plan = build_plan(files.graph, files.weights, fingerprint_of("tensorrt-rtx", targets, files))
    built = f"a plan for sm{targets[0]} was built in {plan.facts.seconds} s"
    if context.dry_run:
        return built
    trt = load_module("tensorrt-rtx")
    try:
        check_validity(trt, trt.Runtime(logger(trt)), plan.data)
    except UserError as error:
        return f"{built}: {error}"
    return f"{built} and can run here"


def _refit_build(context: Context) -> str:
    """Whether a refittable plan, which no machine without a driver can build, is built here."""
    _package("tensorrt-rtx")
    if context.dry_run:
        raise NotCheckedError("it needs an NVIDIA driver")
    files = exported(stage_named("if-i-m", context, small=True), "fp16", context)
    fingerprint = fingerprint_of("tensorrt-rtx", _targets(context), files)
    refittable = fingerprint.model_copy(update={"flags": ("REFIT",), "weights": None})
    try:
        plan = build_plan(files.graph, files.weights, refittable)
    except UserError as error:
        return f"refused: {error}"
    return f"a refittable plan of {len(plan.data) / 1e6:.1f} MB was built"


def rtx_parity(precision: Precision) -> Callable[[Context], str]:
    """A small stage's plan against PyTorch, and a swap there and back."""

    def run(context: Context) -> str:
        _package("tensorrt-rtx")
        stage = stage_named("if-i-m", context, small=True)
        files = exported(stage, precision, context)
        targets = _targets(context)
        planned = with_plan("tensorrt-rtx", targets, files, context.output / "engines")
        if context.dry_run or gpu_target(context.device) not in RTX_TARGETS:
            raise NotCheckedError("TensorRT for RTX does not support this device; built only")
        return run_plan("tensorrt-rtx", planned, stage, context)

    return run


def run_plan(kind: Kind, files: StageFiles, stage: Stage, context: Context) -> str:
    """Open a plan with CUDA graphs, check it, swap there and back, check it without graphs.

    Raises:
        FailedError: it departs, or a swap does.
    """
    engine = TensorRTEngine(files, TensorRTDevice(kind, context.device))
    found = checked(engine, stage, files.precision, context)
    swapped = there_and_back(engine, files, context)
    plain = TensorRTEngine(files, TensorRTDevice(kind, context.device, cuda_graphs=False))
    checked(plain, stage, files.precision, context)
    return f"{found}; {swapped}"


def _onnxruntime(context: Context) -> str:
    try:
        check_device(context.device, "fp32")
    except UserError as error:
        raise NotCheckedError(str(error)) from None
    stage = stage_named("if-i-m", context, small=True)
    engine = opened("onnxruntime", exported(stage, "fp32", context), context)
    return checked(engine, stage, "fp32", context)


def _compiled(context: Context) -> str:
    if context.dry_run:
        raise NotCheckedError("compilation on a CPU says nothing about a GPU")
    stage = stage_named("if-i-m", context, small=True)
    engine = opened("torch", exported(stage, "fp16", context), context, compiled=True)
    return checked(engine, stage, "fp16", context)


def _latency(name: str) -> Callable[[Context], str]:
    def run(context: Context) -> str:
        require_time(context)
        stage = stage_named(name, context)
        files = exported(stage, "fp16", context)
        engines = {}
        if not context.dry_run and gpu_target(context.device) in RTX_TARGETS:
            _package("tensorrt-rtx")
            folder = context.output / "engines"
            planned = with_plan("tensorrt-rtx", _targets(context), files, folder)
            shared = TensorRTDevice("tensorrt-rtx", context.device)
            engines["tensorrt-rtx"] = TensorRTEngine(planned, shared)
        return latency(f"latency {name}", files, stage, engines, context)

    return run
