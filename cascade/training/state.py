"""What a run changes, as the tensors of this process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from cascade.config.averages import STD
from cascade.training.averages import Averages
from cascade.training.safe_reader import SafePlanner, SafeReader


class Progress(NamedTuple):
    """How far a run has come.

    Attributes:
        step: optimizer steps.
        images: positions of the stream behind it, those that were left out too.
    """

    step: int
    images: int


@dataclass(frozen=True)
class TrainState:
    """What a run changes: all that a checkpoint holds beside its progress."""

    network: nn.Module
    optimizer: Optimizer
    averages: Averages
    guard: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self, images: int) -> dict[str, Any]:
        """Return the tensors of this process, by name."""
        weights, moments = get_state_dict(self.network, self.optimizer)
        return {
            "network": weights,
            "optimizer": moments,
            "averages": self.averages.kept,
            "guard": self.guard,
            "progress": {"images": torch.tensor(images)},
        }

    def load(self, place: Path, alone: bool) -> int:
        """Read a checkpoint; return the images that it has behind it."""
        state = self.state_dict(0)
        dcp.load(state, storage_reader=SafeReader(place), planner=SafePlanner(), no_dist=alone)
        set_state_dict(
            self.network,
            self.optimizer,
            model_state_dict=state["network"],
            optim_state_dict=state["optimizer"],
        )
        return int(state["progress"]["images"])

    def snapshot(self) -> dict[str, Any]:
        """Return the power-function averages."""
        kept = self.averages.kept.items()
        return {"averages": {label: one for label, one in kept if label.startswith(STD)}}


def part_of(values: Mapping[str, Any], rank: int, count: int) -> dict[str, Any]:
    """Return the values that one of so many copies writes, of about as many bytes as any other's.

    Copies that each took all of them aside would fill a machine's memory.
    """
    written = [0] * count

    def own(inner: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in inner.items():
            if isinstance(value, Mapping):
                if part := own(value):
                    found[name] = part
                continue
            whose = written.index(min(written))
            written[whose] += value.nbytes if isinstance(value, Tensor) else 1
            if whose == rank:
                found[name] = value
        return found

    return own(values)
