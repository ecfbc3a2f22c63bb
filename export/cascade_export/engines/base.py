"""The interface of engines: each takes a network's place, and states what it can do.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.config.engine import EngineOptions
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade_export.graph.graph import Graph, feeds
from cascade_export.graph.numerics import Numerics, Precision, Quantization
from cascade_export.graph.weights import check_weights, digest, require_numbers

EVERY_PRECISION: Final[tuple[Precision, ...]] = get_args(Precision)


@dataclass(frozen=True)
class EngineInfo:
    """An engine's identity, down to the bytes of its weights: equal ones give equal predictions.

    Attributes:
        weights: sha256 of the weights file that serves now.
        batch_invariant: whether a row of an answer is the same, bit for bit, whatever rows stand
            beside it; the tests prove it where it is said.
        max_batch: the most rows of a call; None if there is no limit.
    """

    kind: str
    version: str
    precision: Precision
    device: str
    graph: str
    weights: str
    batch_invariant: bool
    max_batch: int | None = None


@dataclass(frozen=True)
class StageFiles:
    """The files of one stage of a bundle, with the weights of one fine-tune.

    Attributes:
        precision: of graph and weights.
        islands: kept in float32 beside the default ones.
        plan: folder of a built plan, for the engines that run one.
    """

    config: StageConfig
    precision: Precision
    graph: Graph
    weights: Path
    weights_sha256: str
    islands: tuple[str, ...] = ()
    plan: Path | None = None

    @property
    def origin(self) -> str:
        """Return what its answers depend on, by hashes."""
        return f"{self.precision} {self.graph.sha256} {self.weights_sha256}"

    def with_weights(self, weights: Path) -> "StageFiles":
        """Return the same stage with the weights of another fine-tune."""
        check_weights(weights, self.graph)
        require_numbers(weights)
        return replace(self, weights=weights, weights_sha256=digest(weights))


class Engine(ABC):
    """A `cascade.diffusion.denoiser.Network` that is no module, float32 in and out.

    Calls may come from several threads at once, and while another thread swaps the weights: each
    runs from start to end on the weights that it began with.

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
    _files: StageFiles

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
        max_batch: int,
        folder: Path,
    ) -> str | None:
        """Build a stage's plan into a folder of plans, for images at a time; return its name."""
        return None

    @classmethod
    def prepare(cls, files: StageFiles) -> None:
        """Build what the first sampling of a fine-tune would wait for."""
        return

    @classmethod
    @abstractmethod
    def open_all(
        cls,
        stages: Sequence[StageFiles],
        device: torch.device,
        options: EngineOptions,
        max_memory: int | None = None,
    ) -> Sequence["Engine"]:
        """Open the engines of a cascade's stages; see `open_engines`."""

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """Describe what answers now."""

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
        if self._pads():
            text, text_mask = fixed_length(text, text_mask, self._files.config.text.max_length)
        return self._answer(feeds(x, t, text, text_mask, low_res, aug))

    def _pads(self) -> bool:
        """Return whether texts are padded to the longest that the stage reads."""
        return True

    @abstractmethod
    def _answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Answer a call, its arguments by the names of the graph's inputs."""

    @abstractmethod
    def swap(self, weights: Path) -> None:
        """Serve another fine-tune of the same graph.

        Raises:
            UserError: the file lacks a tensor or has one too many, of another shape or type; the
                weights that served before go on serving.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the memory; the engine cannot be called any more."""


def fixed_length(text: Tensor, text_mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Pad texts, B L D, with masked tokens to a length; longer ones stay as they are.

    Samplers pad a batch to its longest prompt. Sums over another number of tokens round
    differently, so an image's last bits would depend on the prompts beside it.
    """
    missing = length - text.shape[1]
    if missing <= 0:
        return text, text_mask
    return F.pad(text, (0, 0, 0, missing)), F.pad(text_mask, (0, missing), value=False)
