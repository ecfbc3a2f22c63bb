"""TensorRT and TensorRT for RTX: a stage's plan on an NVIDIA GPU, in the network's place.

One code path: `targets` imports the package of a kind. A fine-tune reaches a plan of TensorRT by
refitting all of its weights, and one of TensorRT for RTX by a cached rebuild from memory, which
takes seconds. Written against both interfaces and not executed on a GPU yet.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade_export.engines.base import EVERY_PRECISION, Engine
from cascade_export.engines.opening import open_engine, stand_in
from cascade_export.engines.swap_check import check_swap
from cascade_export.engines.tensorrt.build import (
    initializers,
    obtain_plan,
    plan_fingerprint,
    stage_profile,
)
from cascade_export.engines.tensorrt.options import PlanOptions
from cascade_export.engines.tensorrt.plan_cache import PlanCache, StoredPlan
from cascade_export.engines.tensorrt.session import Session, TensorRTDevice
from cascade_export.engines.tensorrt.targets import (
    Gpu,
    Kind,
    gpu_target,
    load_module,
    resolve_targets,
    this_gpu,
)
from cascade_export.engines.version import EngineInfo, StageFiles, Version
from cascade_export.graph.numerics import Numerics
from cascade_export.graph.weights import check_weights


class _Plan(Version):
    """A plan with a fine-tune's weights in it."""

    def __init__(self, files: StageFiles, shared: TensorRTDevice) -> None:
        check_weights(files.weights, files.graph)
        version, target = shared.trt.__version__, gpu_target(shared.device)
        stored = plan_of(files, version, target, this_gpu(shared.device))
        made = stored.manifest.fingerprint
        plan = stored.read()
        prepare = partial(refit, shared, files=files) if made.weights is None else None
        size = stored.manifest.facts.memory.weights or len(plan)
        info = EngineInfo(
            kind=shared.kind,
            version=made.version,
            precision=files.precision,
            device=str(shared.device),
            graph=files.graph.sha256,
            weights=files.weights_sha256,
            batch_invariant=False,
            max_batch=made.profile["batch"][2],
            side=files.config.size,
        )
        super().__init__(files, info, shared.device)
        self.session = Session(shared, plan, size, prepare)
        self.session.ready()  # a refusal comes now, and before a swap takes effect

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        types = {name: torch.bool if name == "text_mask" else torch.float32 for name in inputs}
        return self.session.run(
            {n: v.to(self.device, types[n]).contiguous() for n, v in inputs.items()}
        )

    def free(self) -> None:
        self.session.close()


class TensorRTEngine(Engine):
    """One stage's plan. In a swap, and while the weights before are pinned, both are in memory.

    Args:
        check: called with the new network and its files before a swap takes effect; what it raises
            refuses the swap. A refitted plan can be wrong without an error (TensorRT 11.3
            documents dropped biases), so a comparison belongs here.
    """

    kind: ClassVar[Kind] = "tensorrt"
    precisions: ClassVar = {"cuda": EVERY_PRECISION}
    quantizations = ("int8", "fp8")
    runs_plans = True
    server_takes_plans = True

    @classmethod
    def runs_here(cls) -> bool:
        return gpu_target() is not None

    @classmethod
    def default_device(cls) -> str:
        return "cuda" if cls.runs_here() else "cpu"

    @classmethod
    def targets(cls, asked: Sequence[int], numerics: Numerics) -> tuple[int, ...]:
        return resolve_targets(cls.kind, asked, numerics)

    @classmethod
    def require(cls, device: torch.device, numerics: Numerics) -> None:
        load_module(cls.kind)
        if numerics.quantization == "fp8" and not cls.runs_here():
            raise UserError(
                "fp8 runs on a GPU of compute capability 8.9 or later, and the check of an export "
                "runs it; export there, or take int8."
            )

    @classmethod
    def build_plan(
        cls,
        files: StageFiles,
        numerics: Numerics,
        targets: Sequence[int],
        options: PlanOptions,
        folder: Path,
    ) -> str | None:
        profile = stage_profile(files.config, options)
        wanted = plan_fingerprint(
            files.graph, files.weights_sha256, cls.kind, targets, numerics, profile
        )
        return obtain_plan(PlanCache(folder, options), files.graph, files.weights, wanted).key

    @classmethod
    def prepare(cls, files: StageFiles) -> None:
        _with_its_weights(files, _plan_beside(files))

    @classmethod
    def opener(
        cls, device: torch.device, options: EngineOptions, max_memory: int | None = None
    ) -> Callable[[StageFiles], Self]:
        shared = TensorRTDevice(cls.kind, device, max_memory)
        return partial(cls, shared=shared, check=_beside_the_graph)

    def __init__(
        self,
        files: StageFiles,
        shared: TensorRTDevice,
        check: Callable[[Version, StageFiles], None] | None = None,
    ) -> None:
        self._shared = shared
        self._check = check
        super().__init__(_Plan(files, shared))

    def _opened(self, files: StageFiles) -> Version:
        plan = _Plan(files, self._shared)
        with ExitStack() as undo:
            undo.callback(plan.free)
            if self._check is not None:
                self._check(plan, files)
            undo.pop_all()
        return plan


class TensorRTForRTXEngine(TensorRTEngine):
    """The same of TensorRT for RTX, whose plans no server loads."""

    kind: ClassVar[Kind] = "tensorrt-rtx"
    server_takes_plans = False


def _beside_the_graph(plan: Version, files: StageFiles) -> None:
    """Compare a plan's answer with that of the same graph and weights on the CPU."""
    check_swap(plan, open_engine(stand_in(files.precision), files), files)


def plan_of(
    files: StageFiles, version: str, target: int | None, gpu: Gpu | None = None
) -> StoredPlan:
    """Return the plan for a stage's weights."""
    stored = _plan_beside(files)
    stored.check_runs(version, target, gpu)
    if stored.manifest.fingerprint.graph != files.graph.sha256:
        raise UserError(f"The plan {stored.folder} is not of the graph beside it; export again.")
    return _with_its_weights(files, stored)


def _plan_beside(files: StageFiles) -> StoredPlan:
    if files.plan is None:
        raise UserError(f"Stage '{files.config.name}' has no plan; export it for an NVIDIA GPU.")
    return PlanCache(files.plan.parent).named(files.plan.name)


def _with_its_weights(files: StageFiles, stored: StoredPlan) -> StoredPlan:
    """Return the plan itself if it takes these weights, else the same plan built with them."""
    made = stored.manifest.fingerprint
    if made.weights in (None, files.weights_sha256):
        return stored
    wanted = made.model_copy(update={"weights": files.weights_sha256})
    return obtain_plan(PlanCache(stored.folder.parent), files.graph, files.weights, wanted)


def refit(shared: TensorRTDevice, engine: Any, files: StageFiles) -> None:
    """Send an engine every one of its weights; a part of them would leave others' values in it."""
    files.require_unchanged()
    weights = files.weights
    refitter = shared.trt.Refitter(engine, shared.log)
    reader = shared.trt.OnnxParserRefitter(refitter, shared.log)
    with initializers(reader, files.graph, weights):
        if not reader.refit_model_proto():
            raise UserError(f"{weights} does not fit the plan; export it again.")
        missing = refitter.get_missing_weights()
        if missing:
            raise UserError(
                f"{weights} leaves {len(missing)} of the plan's weights open, such as "
                f"{missing[0]!r}; export it again."
            )
        if not refitter.refit_cuda_engine():
            raise UserError(f"{weights} was not taken: {shared.log.reason()}; export again.")
