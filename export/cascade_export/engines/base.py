"""The interface of engines: each takes a network's place, and states what it can do."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Final, get_args

import torch
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.diffusion.denoiser import Network
from cascade.errors import UserError
from cascade_export.engines.pins import Pins
from cascade_export.engines.tensorrt.options import PlanOptions
from cascade_export.engines.version import EngineInfo, StageFiles, Version
from cascade_export.graph.numerics import Numerics, Precision, Quantization

EVERY_PRECISION: Final[tuple[Precision, ...]] = get_args(Precision)


class Engine(ABC):
    """A `cascade.diffusion.denoiser.Network` that is no module, float32 in and out.

    Calls may come from several threads at once, and while another thread swaps the weights: each
    runs from start to end on the weights that it began with. Who makes several that belong
    together, such as a picture's steps, pins the weights for them.

    Args:
        first: what it serves until a swap.

    Attributes:
        kind: its name in `ENGINES`.
        precisions: what it computes in, on each type of device that it runs on.
        quantizations: the graphs that it runs beside plain ones.
        options: the fields of `EngineOptions` that it reads.
        runs_plans: whether it runs plans built for GPUs, of one side and a largest batch.
        server_takes_plans: whether Triton Inference Server loads its plans.
        device: where inputs are taken from and answers left.
    """

    kind: ClassVar[str]
    precisions: ClassVar[Mapping[str, tuple[Precision, ...]]]
    quantizations: ClassVar[tuple[Quantization, ...]] = ()
    options: ClassVar[frozenset[str]] = frozenset()
    runs_plans: ClassVar[bool] = False
    server_takes_plans: ClassVar[bool] = False
    device: torch.device

    def __init__(self, first: Version) -> None:
        self.device = first.device
        self._served = Pins(self.kind, first)
        self._swapping = threading.Lock()

    @classmethod
    def runs_here(cls) -> bool:
        """Return whether this machine can run it, its package apart."""
        return True

    @classmethod
    def default_device(cls) -> str:
        """Return the default device: the GPU if there is one that it can use."""
        return "cuda" if "cuda" in cls.precisions and torch.cuda.is_available() else "cpu"

    @classmethod
    def targets(cls, asked: Sequence[int], numerics: Numerics) -> tuple[int, ...]:
        """Return the compute capabilities to build plans for; none where there are no plans."""
        if asked:
            raise UserError(
                f"The {cls.kind} engine builds no plans; leave --target out, or take --engine "
                "tensorrt-rtx."
            )
        return ()

    @classmethod
    def require(cls, device: torch.device, numerics: Numerics) -> None:
        """Check that its package is installed and computes so on a device."""
        if device.type not in cls.precisions:
            places = " or ".join(cls.precisions)
            raise UserError(f"The {cls.kind} engine does not run on '{device}'; give {places}.")
        known = cls.precisions[device.type]
        if numerics.precision not in known:
            where = "a CPU" if device.type == "cpu" else device.type
            raise UserError(
                f"The {cls.kind} engine has no {numerics.precision} on {where}; take "
                f"{' or '.join(known)}, or another engine."
            )
        if numerics.quantization not in ("none", *cls.quantizations):
            raise UserError(
                f"The {cls.kind} engine does not run {numerics.quantization} graphs here; take "
                "another engine, such as onnxruntime for int8 or tensorrt-rtx."
            )

    @classmethod
    def check_options(cls, options: EngineOptions) -> None:
        """Refuse options that it has no use for."""
        for name, field in EngineOptions.model_fields.items():
            if name not in cls.options and getattr(options, name) != field.default:
                raise UserError(
                    f"The {cls.kind} engine has no option '{name}'; leave it out. "
                    f"({field.description})"
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
        """Build a stage's plan into a folder of plans; return its name."""
        return None

    @classmethod
    def prepare(cls, files: StageFiles) -> None:
        """Build what the first sampling of a fine-tune would wait for."""
        return

    @classmethod
    def is_batch_invariant(cls, device: torch.device) -> bool:
        """Return `EngineInfo.batch_invariant` of its engines on a device."""
        return False

    @classmethod
    @abstractmethod
    def opener(
        cls, device: torch.device, options: EngineOptions, max_memory: int | None = None
    ) -> Callable[[StageFiles], "Engine"]:
        """Return what opens engines that share a device's memory; see `engine_opener`."""

    @property
    def info(self) -> EngineInfo:
        """Describe what answers now."""
        return self._served.serving.info

    @property
    def origin(self) -> str:
        """Return what its answers depend on now, by hashes."""
        return self._served.serving.origin

    @property
    def side(self) -> int | None:
        """Return the side of the squares that it takes; None if it takes any size."""
        return self.info.side

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as the network does.

        Raises:
            UserError: more rows or other sizes than a plan was built for.
        """
        with self.pinned() as network:
            return network(x, t, text, text_mask, low_res, aug)

    def pinned(self) -> AbstractContextManager[Network]:
        """Give a network that answers with the weights of now until it is left.

        Two pins of the same weights give the very same object. Weights that were swapped out leave
        memory with their last pin. Under a limit of memory pinned ones may leave meanwhile, and
        come back from their own file.
        """
        return self._served.pinned()

    def swap(self, weights: Path) -> None:
        """Serve another fine-tune of the same graph.

        Raises:
            UserError: the file lacks a tensor or has one too many, of another shape or type; the
                weights that served before go on serving.
        """
        with self._swapping:
            files = self._served.serving.files.with_weights(weights)
            again = self._served.again(files.weights_sha256)
            if again is None:
                self._served.replace(self._opened(files))
            else:
                again.files = files  # the same weights, and the file that is sure to be there

    @abstractmethod
    def _opened(self, files: StageFiles) -> Version:
        """Open other weights of the stage, for a swap."""

    def close(self) -> None:
        """Free the memory once nothing is pinned; the engine cannot be called any more."""
        with self._swapping:
            self._served.replace(None)
