"""TensorRT and TensorRT for RTX: a stage's plan on an NVIDIA GPU, in the network's place.

One code path: `targets` imports the package of a kind. A fine-tune reaches a plan of TensorRT by
refitting all of its weights, and one of TensorRT for RTX by a cached rebuild from memory, which
takes seconds. Written against both interfaces and not executed on a GPU yet.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cascade.errors import UserError
from cascade_export.engines.base import EngineInfo, StageFiles, closed, fixed_length
from cascade_export.engines.tensorrt.build import initializers, obtain_plan
from cascade_export.engines.tensorrt.plan_cache import PlanCache, StoredPlan
from cascade_export.engines.tensorrt.session import Session, TensorRTDevice
from cascade_export.engines.tensorrt.targets import gpu_target
from cascade_export.graph.graph import Graph
from cascade_export.graph.weights import check_weights


class _Serving(NamedTuple):
    session: Session
    info: EngineInfo


class TensorRTEngine:
    """One stage's plan.

    Args:
        files: the stage, with the folder of its plan.
        shared: of its GPU; the engines of one cascade take turns on it.
        check: called with the new engine's network and its weights file before a swap takes
            effect; what it raises refuses the swap. A refitted plan can be wrong without an error
            (TensorRT 11.3 documents dropped biases), so a parity run belongs here.

    Raises:
        UserError: the plan is missing, damaged, of another graph, or cannot run here.
    """

    def __init__(
        self,
        files: StageFiles,
        shared: TensorRTDevice,
        check: Callable[["TensorRTEngine", Path], None] | None = None,
    ) -> None:
        self._files = files
        self._shared = shared
        self._check = check
        self._serving: _Serving | None = self._load(files)

    @property
    def info(self) -> EngineInfo:
        """What answers now."""
        return self._current().info

    @property
    def device(self) -> torch.device:
        """Where inputs are taken from and answers left."""
        return self._shared.device

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as the network does; see `cascade.diffusion.denoiser.Network`.

        Raises:
            UserError: more rows or other sizes than the plan was built for.
        """
        text, text_mask = fixed_length(text, text_mask, self._files.config.text.max_length)
        feeds = {"x": x, "t": t, "text": text}
        if low_res is not None and aug is not None:
            feeds |= {"low_res": low_res, "aug": aug}
        inputs = {n: v.to(self.device, torch.float32).contiguous() for n, v in feeds.items()}
        inputs["text_mask"] = text_mask.to(self.device).contiguous()
        with self._shared.turn:  # a swap waits, and the weights stay those of the call's beginning
            return self._current().session.run(inputs)

    def swap(self, weights: Path) -> None:
        """Serve another fine-tune; see `Engine.swap`. For a moment both are in memory."""
        files = self._files.with_weights(weights)
        candidate = TensorRTEngine(files, self._shared)
        with ExitStack() as undo:
            undo.callback(candidate.close)
            if self._check is not None:
                self._check(candidate, weights)
            undo.pop_all()
        with self._shared.turn:
            before = self._current()
            self._serving, self._files = candidate._current(), files
            before.session.close()

    def close(self) -> None:
        """Free the memory."""
        with self._shared.turn:
            if self._serving is not None:
                self._serving.session.close()
            self._serving = None

    def _current(self) -> _Serving:
        if self._serving is None:
            raise closed(self._shared.kind)
        return self._serving

    def _load(self, files: StageFiles) -> _Serving:
        shared = self._shared
        check_weights(files.weights, files.graph)
        stored = plan_of(files, shared.trt.__version__, gpu_target(shared.device))
        made = stored.manifest.fingerprint
        plan = stored.read()
        prepare = None
        if made.weights is None:
            prepare = partial(refit, shared, graph=files.graph, weights=files.weights)
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
        )
        session = Session(shared, plan, size, prepare)
        session.ready()  # a refusal comes now, and before a swap takes effect
        return _Serving(session, info)


def plan_of(files: StageFiles, version: str, target: int | None) -> StoredPlan:
    """Return the plan for a stage's weights.

    A plan that holds other weights tells how the one for these is built, if it is not in the cache.

    Args:
        files: the stage.
        version: of the installed runtime.
        target: this GPU's compute capability.

    Raises:
        UserError: the stage has no plan, it was built from another graph, or it cannot run here.
    """
    if files.plan is None:
        raise UserError(f"Stage '{files.config.name}' has no plan; export it for an NVIDIA GPU.")
    cache = PlanCache(files.plan.parent)
    stored = cache.named(files.plan.name)
    stored.check_runs(version, target)
    made = stored.manifest.fingerprint
    if made.graph != files.graph.sha256:
        raise UserError(f"The plan {stored.folder} is not of the graph beside it; export again.")
    if made.weights in (None, files.weights_sha256):
        return stored
    wanted = made.model_copy(update={"weights": files.weights_sha256})
    return obtain_plan(cache, files.graph, files.weights, wanted)


def refit(shared: TensorRTDevice, engine: Any, graph: Graph, weights: Path) -> None:
    """Send an engine every one of its weights; a part of them would leave others' values in it.

    Raises:
        UserError: the weights do not fit, or the engine wants weights that the file has not.
    """
    refitter = shared.trt.Refitter(engine, shared.log)
    reader = shared.trt.OnnxParserRefitter(refitter, shared.log)
    with initializers(reader, graph, weights):
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
