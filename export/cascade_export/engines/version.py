"""One set of weights in a stage's graph: its files, what it is, and the network that answers.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade_export.graph.graph import Graph, feeds
from cascade_export.graph.numerics import Precision
from cascade_export.graph.weights import check_weights, digest, require_numbers


@dataclass(frozen=True)
class EngineInfo:
    """An engine's identity, down to the bytes of its weights: equal ones give equal predictions.

    Attributes:
        weights: sha256 of the weights file that serves now.
        batch_invariant: whether a row of an answer is the same, bit for bit, whatever rows stand
            beside it; the tests prove it where it is said.
        max_batch: the most rows of a call; None if there is no limit.
        side: of the squares that it takes, pixels; None if it takes pictures of any size.
    """

    kind: str
    version: str
    precision: Precision
    device: str
    graph: str
    weights: str
    batch_invariant: bool
    max_batch: int | None = None
    side: int | None = None


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

    def require_unchanged(self) -> None:
        """Check that the weights file, which is read again, is the one that was opened."""
        if not self.weights.is_file() or digest(self.weights) != self.weights_sha256:
            raise UserError(
                f"{self.weights} was changed or deleted while an engine served it and is needed "
                "again; open the bundle again, and give changed weights another name."
            )


class Version(ABC):
    """One set of weights in a stage's graph: a `Network` whose answers stay the same.

    Args:
        padded: whether texts are padded to the longest that the stage reads.

    Attributes:
        files: of the stage, with these weights.
        info: what answers.
        device: where inputs are taken from and answers left.
    """

    def __init__(
        self, files: StageFiles, info: EngineInfo, device: torch.device, padded: bool = True
    ) -> None:
        self.files = files
        self.info = info
        self.device = device
        self._padded = padded

    @property
    def origin(self) -> str:
        """Return what its answers depend on, by hashes."""
        return f"{self.info.kind} {self.files.origin}"

    @property
    def side(self) -> int | None:
        """Return the side of the squares that it takes; None if it takes any size."""
        return self.info.side

    @property
    def key(self) -> str:
        """Return what equal ones of one engine share."""
        return self.files.weights_sha256

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as the network does; see `Engine`."""
        if self._padded:
            text, text_mask = fixed_length(text, text_mask, self.files.config.text.max_length)
        return self.answer(feeds(x, t, text, text_mask, low_res, aug))

    @abstractmethod
    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Answer a call, its arguments by the names of the graph's inputs."""

    @abstractmethod
    def free(self) -> None:
        """Free the memory; it cannot be called any more."""


def fixed_length(text: Tensor, text_mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Pad texts, B L D, with masked tokens to a length; longer ones stay as they are.

    Samplers pad a batch to its longest prompt. Sums over another number of tokens round
    differently, so an image's last bits would depend on the prompts beside it.
    """
    missing = length - text.shape[1]
    if missing <= 0:
        return text, text_mask
    return F.pad(text, (0, 0, 0, missing)), F.pad(text_mask, (0, missing), value=False)
