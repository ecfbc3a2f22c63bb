"""From a thin ONNX graph and a weights file to a TensorRT plan.

Both builders take the same path: a strongly typed network (the graph's types are the plan's), one
profile per stage, the weights fed from memory so that a fine-tune needs no new graph. TensorRT for
RTX builds without a GPU. It cannot build plans to be refitted there, so its plans hold their
weights; TensorRT's are sent all of theirs before they run.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import safe_open
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade_export.engines.tensorrt.inspect_plan import count_layers, planned_memory
from cascade_export.engines.tensorrt.options import PlanOptions
from cascade_export.engines.tensorrt.plan_cache import (
    BuildFacts,
    BuiltPlan,
    Fingerprint,
    PlanCache,
    StoredPlan,
)
from cascade_export.engines.tensorrt.targets import FLAVORS, Kind, load_module, this_gpu
from cascade_export.graph.graph import Graph, TensorSpec
from cascade_export.graph.numerics import Numerics
from cascade_export.graph.weights import check_weights, digest

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[int, int, int]]
"""Smallest, usual (tuned for) and largest size of each dynamic dimension, by its name in the graph.
One per stage: every further profile would almost double the plan."""

_TOTAL = re.compile(r"(Total|Max) .*Memory: ")
_EXPORTERS = ("torch", "onnx", "onnx-ir", "onnxscript")


def stage_profile(config: StageConfig, options: PlanOptions) -> Profile:
    """Return the sizes a stage's plan takes: with guidance an image takes two rows."""
    side, length = config.size, config.text.max_length
    return {
        "batch": (1, 2 * options.usual_batch, 2 * options.max_batch),
        "length": (length, length, length),
        "height": (side, side, side),
        "width": (side, side, side),
    }


def shapes(spec: TensorSpec, profile: Profile) -> tuple[Shape, Shape, Shape]:
    """Return an input's smallest, usual and largest shape."""
    missing = [dim for dim in spec.dims if isinstance(dim, str) and dim not in profile]
    if missing:
        raise UserError(f"The profile has no size for {missing[0]!r} of {spec.name}; give one.")

    def at(which: int) -> Shape:
        return tuple(profile[dim][which] if isinstance(dim, str) else dim for dim in spec.dims)

    return at(0), at(1), at(2)


def plan_fingerprint(
    graph: Graph,
    weights_sha256: str,
    kind: Kind,
    targets: Sequence[int],
    numerics: Numerics,
    profile: Profile,
) -> Fingerprint:
    """Return everything a plan depends on, the version of the builder's package included.

    Args:
        weights_sha256: of the file the plan is to hold. Plans of TensorRT are sent theirs before
            they run, and serve every fine-tune.
    """
    refittable = not FLAVORS[kind].ahead_of_time
    return Fingerprint(
        graph=graph.sha256,
        weights=None if refittable else weights_sha256,
        precision=numerics.precision,
        quantisation=numerics.quantization,
        profile=dict(profile),
        kind=kind,
        version=load_module(kind).__version__,
        targets=tuple(targets),
        gpu=this_gpu() if refittable else None,
        # Without the second, a plan may allocate while a CUDA graph is captured.
        flags=("REFIT",) if refittable else ("REQUIRE_USER_ALLOCATION",),
        exporter={name: version(name) for name in _EXPORTERS},
    )


def obtain_plan(
    cache: PlanCache, graph: Graph, weights: Path, fingerprint: Fingerprint
) -> StoredPlan:
    """Return a plan from the cache, built now if it is not there."""
    check_weights(weights, graph)
    return cache.obtain(fingerprint, lambda: build_plan(graph, weights, fingerprint))


def build_plan(graph: Graph, weights: Path, fingerprint: Fingerprint) -> BuiltPlan:
    """Build a plan; seconds with TensorRT for RTX, minutes with TensorRT.

    Raises:
        ValueError: the fingerprint is not that of what would be built.
    """
    check_weights(weights, graph)
    trt = load_module(fingerprint.kind)
    stated = (fingerprint.graph, fingerprint.weights or digest(weights), fingerprint.version)
    if stated != (graph.sha256, digest(weights), trt.__version__):
        raise ValueError("the fingerprint is of another graph, other weights or another builder")
    start = time.monotonic()
    log = logger(trt)
    builder = trt.Builder(log)
    # TensorRT 11 knows no other networks and ignores the flag; 10 needs it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    with initializers(parser, graph, weights):
        if not parser.parse_model_proto():
            raise UserError(_not_parsed(parser, fingerprint.kind))
        config = builder_config(trt, builder, graph.inputs, fingerprint)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"{fingerprint.kind} cannot build {graph.path}: {log.reason()}.")
    data = bytes(plan)
    facts = BuildFacts(
        layers=count_layers(network),
        memory=planned_memory(log.messages),
        log=tuple(log.messages),
        seconds=round(time.monotonic() - start, 1),
    )
    return BuiltPlan(data, facts)


def builder_config(
    trt: ModuleType, builder: Any, inputs: Sequence[TensorSpec], fingerprint: Fingerprint
) -> Any:
    """Return an `IBuilderConfig` with a fingerprint's flags, targets and profile.

    TF32 is always off: fp32 islands are to be exact.
    """
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    for flag in fingerprint.flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if FLAVORS[fingerprint.kind].ahead_of_time:
        config.num_compute_capabilities = len(fingerprint.targets)
        known = trt.ComputeCapability.__members__
        for index, target in enumerate(fingerprint.targets):
            if f"SM{target}" not in known:
                raise UserError(f"tensorrt_rtx {trt.__version__} does not build for sm{target}.")
            config.set_compute_capability(known[f"SM{target}"], index)
    profile = builder.create_optimization_profile()
    for spec in inputs:
        profile.set_shape(spec.name, *shapes(spec, fingerprint.profile))
    config.add_optimization_profile(profile)
    return config


@contextmanager
def initializers(reader: Any, graph: Graph, weights: Path) -> Iterator[None]:
    """Load a graph and its weights into an `OnnxParser` or an `OnnxParserRefitter`.

    The reader looks at the tensors' memory until it has parsed or refitted, inside this context.
    """
    if not reader.load_model_proto(graph.path.read_bytes(), str(graph.path)):
        raise UserError(f"{graph.path} is not read ({_errors(reader)}); export again.")
    alive: dict[str, Tensor] = {}
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 -- the file is no mapping
            alive[name] = file.get_tensor(name)
            if not reader.load_initializer(name, alive[name].data_ptr(), alive[name].nbytes):
                raise UserError(f"{weights}: the graph takes no tensor {name!r}; export again.")
    yield


def logger(trt: ModuleType) -> Any:
    """Return an `ILogger` that keeps messages instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]  # a module chosen at run time
        """Attributes: messages, the warnings and totals of memory; errors, not yet reported."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING or _TOTAL.match(message):
                self.messages.append(message)
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

        def reason(self) -> str:
            """Return the first error since the last call: those after it follow from it."""
            first = self.errors[0].strip().rstrip(".") if self.errors else "no reason given"
            self.errors.clear()
            return first

    return Log()


def _not_parsed(parser: Any, kind: Kind) -> str:
    return f"{kind} cannot take the graph: {_errors(parser)}; take another engine."


def _errors(reader: Any) -> str:
    """Return a parser's first error, with its operation where it names one."""
    if not reader.num_errors:
        return "no reason given"
    error = reader.get_error(0)
    reason = f"{str(error.code()).rpartition('.')[2]}, {error.desc().strip().rstrip('.')}"
    operation = error.node_operator()
    return f"{operation} at {error.node_name()}: {reason}" if operation else reason
