"""What an engine is: something that takes a network's place, and says what it is.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cascade.config.base import MOST_THREADS, Frozen
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade_export.graph.graph import Graph
from cascade_export.graph.numerics import Precision
from cascade_export.graph.weights import check_weights, digest, require_numbers

EngineKind = Literal["torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class EngineInfo:
    """What answers, down to the bytes of its weights.

    Attributes:
        kind: which engine.
        version: of the package that runs it.
        precision: what it computes in.
        device: where.
        graph: sha256 of the exported graph.
        weights: sha256 of the weights file that serves now.
        batch_invariant: whether a row of an answer is the same, bit for bit, whatever rows stand
            beside it; the tests prove it where it is said.
        max_batch: the most rows of a call; None if there is no limit.
    """

    kind: EngineKind
    version: str
    precision: Precision
    device: str
    graph: str
    weights: str
    batch_invariant: bool
    max_batch: int | None = None

    @property
    def key(self) -> str:
        """A name for all of it: engines of one key give the same answers."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Engine(Protocol):
    """A `cascade.diffusion.denoiser.Network` that is no module.

    Calls may come from several threads at once, and while another thread swaps the weights: each
    runs from start to end on the weights that it began with.
    """

    @property
    def info(self) -> EngineInfo:
        """What answers now."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs are taken from and answers left."""
        ...

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as the network does, float32 in and out."""
        ...

    def swap(self, weights: Path) -> None:
        """Serve another fine-tune of the same graph.

        Raises:
            UserError: the file lacks a tensor or has one too many, of another shape or type; the
                weights that served before go on serving.
        """
        ...

    def close(self) -> None:
        """Free the memory; the engine cannot be called any more."""
        ...


@dataclass(frozen=True)
class StageFiles:
    """What an engine is opened from: one stage of a bundle, with the weights of one subject.

    Attributes:
        config: the stage's configuration.
        precision: of graph and weights.
        graph: the exported architecture.
        weights: the safetensors file to serve.
        weights_sha256: its hash.
        islands: modules kept in float32 beside the default ones.
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
        """What its answers depend on, by hashes."""
        return f"{self.precision} {self.graph.sha256} {self.weights_sha256}"

    def with_weights(self, weights: Path) -> "StageFiles":
        """The same stage with the weights of another fine-tune.

        Raises:
            UserError: they do not fit the graph, or are no numbers.
        """
        check_weights(weights, self.graph)
        require_numbers(weights)
        return replace(self, weights=weights, weights_sha256=digest(weights))


class EngineOptions(Frozen):
    """How an engine runs on this machine; none of it changes what a picture shows.

    Attributes:
        threads: of one call on a CPU; as many as there are cores by default. PyTorch's threads are
            the process's and set by OMP_NUM_THREADS.
        spinning: whether idle threads of ONNX Runtime wait busily, which answers some 10 % sooner
            and takes the cores from everybody else.
        compiled: compile the `torch` engine.
    """

    threads: Annotated[int | None, Field(strict=True, gt=0, le=MOST_THREADS)] = None
    spinning: Annotated[bool, Field(strict=True)] = True
    compiled: Annotated[bool, Field(strict=True)] = False

    def check(self, kind: EngineKind) -> None:
        """Refuse options that an engine has no use for.

        Raises:
            UserError: there is one.
        """
        if self.threads is not None and kind not in ("onnxruntime", "openvino"):
            raise UserError(
                f"The {kind} engine has no number of threads of its own; leave it out, and set "
                "OMP_NUM_THREADS if PyTorch is to use fewer."
            )
        if not self.spinning and kind != "onnxruntime":
            raise UserError(f"The {kind} engine's threads do not spin; leave that option out.")
        if self.compiled and kind != "torch":
            raise UserError(f"The {kind} engine is compiled as it is; leave that option out.")


def fixed_length(text: Tensor, text_mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Pad texts with masked tokens to the longest that a stage reads.

    Samplers pad a batch to its longest prompt. Sums over another number of tokens round
    differently, so a picture's last bits would depend on the prompts beside it.

    Args:
        text: B L D.
        text_mask: B L bool.
        length: what to pad to; longer texts stay as they are.
    """
    missing = length - text.shape[1]
    if missing <= 0:
        return text, text_mask
    return F.pad(text, (0, 0, 0, missing)), F.pad(text_mask, (0, missing), value=False)


def closed(kind: EngineKind) -> RuntimeError:
    """What to raise when an engine is called after `close`."""
    return RuntimeError(f"the {kind} engine was closed; open it again")
