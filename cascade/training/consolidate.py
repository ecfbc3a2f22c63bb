"""From what a run keeps to stage folders: its checkpoints, and averages made afterwards.

Shapes: `n` snapshots of an average.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from cascade.config.averages import STD
from cascade.config.folders import read_stage_config
from cascade.errors import UserError
from cascade.stage import Stage, meta_network
from cascade.training.averages import exponent
from cascade.training.checkpoint import (
    CHECKPOINTS,
    SNAPSHOTS,
    alone_is_fine,
    checkpoint_steps,
    reading,
)
from cascade.training.safe_reader import SafePlanner, SafeReader

WEIGHTS = "weights"
"""What the trained weights are called among the averages."""


def consolidate(place: Path, output: Path, average: str | None = None) -> str:
    """Write the weights of a checkpoint as a stage folder.

    Args:
        place: the checkpoint's folder, or its run's, whose newest one is taken.
        average: label of the average that is written, or `weights`; by default what the run would
            publish.

    Returns:
        The label of what was written.
    """
    checkpoint = _newest(place, CHECKPOINTS)
    labels = [*_labels(checkpoint), WEIGHTS]
    label = labels[0] if average is None else average
    if label not in labels:
        raise UserError(f"{checkpoint} holds no '{label}'; take one of {', '.join(labels)}.")
    _save(checkpoint, output, _read(checkpoint, label))
    return label


class Snapshot(NamedTuple):
    """A power-function average of the past."""

    folder: Path
    step: int
    label: str

    @property
    def gamma(self) -> float:
        """Its exponent."""
        return exponent(float(self.label.removeprefix(STD)))


def average_afterwards(run: Path, std: float, output: Path) -> float:
    """Write the power-function average of another width, made of a run's snapshots, as a stage.

    Karras et al. 2024, section 3.2.

    Returns:
        The error: norm of the difference between the wanted weighting of the past and what the
        snapshots can give, relative to the wanted one's.
    """
    folder = run / SNAPSHOTS
    snapshots = [
        Snapshot(folder / f"step-{step}", step, label)
        for step in checkpoint_steps(folder)
        for label in _labels(folder / f"step-{step}")
    ]
    if not snapshots:
        raise UserError(
            f"{run} holds no snapshots; train with averages of a std and train.snapshot_every."
        )
    last = snapshots[-1].step
    shares, error = fitted([(one.step, one.gamma) for one in snapshots], last, exponent(std))
    found: dict[str, Tensor] = {}
    for snapshot, share in zip(snapshots, shares, strict=True):
        for name, value in _read(snapshot.folder, snapshot.label).items():
            # Shares of both signs and far above 1 cancel: in double precision.
            found[name] = found.get(name, 0) + share * value.double()
    _save(snapshots[-1].folder, output, {name: one.float() for name, one in found.items()})
    return error


def fitted(
    snapshots: Sequence[tuple[int, float]], step: int, gamma: float
) -> tuple[Sequence[float], float]:
    """Return the shares of the snapshots' sum that is nearest to an average, and its error.

    Least squares between weightings of the past (Karras et al. 2024, section 3.2 and appendix C).

    Args:
        snapshots: (step, gamma) of each, n.
        step: the average's.
        gamma: the average's.
    """
    products = np.array([[_product(one, other) for other in snapshots] for one in snapshots])
    wanted = np.array([_product(one, (step, gamma)) for one in snapshots])
    shares = np.linalg.lstsq(products, wanted, rcond=None)[0]
    whole = _product((step, gamma), (step, gamma))
    missing = whole - 2 * shares @ wanted + shares @ products @ shares
    return shares.tolist(), float(np.sqrt(max(missing, 0.0) / whole))


def _product(one: tuple[int, float], other: tuple[int, float]) -> float:
    """Integrate the product of two weightings (g + 1) t^g / T^(g + 1), of steps t up to T."""
    (first, g), (second, h) = one, other
    # In logarithms: T^(g + 1) leaves the range of numbers.
    power = g + h + 1
    scale = power * np.log(min(first, second)) - (g + 1) * np.log(first) - (h + 1) * np.log(second)
    return float((g + 1) * (h + 1) / power * np.exp(scale))


def _newest(place: Path, kind: str) -> Path:
    """Return a checkpoint's folder, the newest one's of a run."""
    if (place / ".metadata").is_file():
        return place
    for folder in (place / kind, place):
        steps = checkpoint_steps(folder)
        if steps:
            return folder / f"step-{steps[-1]}"
    raise UserError(
        f"{place} holds no checkpoint; give a run's folder, or one of its {kind}/step-N. A run "
        "that has ended keeps them with train.keep_checkpoints."
    )


def _labels(checkpoint: Path) -> list[str]:
    """Name the averages in a checkpoint, the one to publish first."""
    with reading(checkpoint):
        paths = SafeReader(checkpoint).read_metadata().planner_data.values()
    return list(dict.fromkeys(path[1] for path in paths if path[0] == "averages"))


def _read(checkpoint: Path, label: str) -> Mapping[str, Tensor]:
    """Read one network's weights from a checkpoint."""
    shapes = meta_network(read_stage_config(checkpoint)).state_dict()
    empty = {name: torch.empty(value.shape) for name, value in shapes.items()}
    state: dict[str, Any] = {"network": empty} if label == WEIGHTS else {"averages": {label: empty}}
    with reading(checkpoint), alone_is_fine():
        dcp.load(state, storage_reader=SafeReader(checkpoint), planner=SafePlanner(), no_dist=True)
    return empty


def _save(checkpoint: Path, output: Path, weights: Mapping[str, Tensor]) -> None:
    config = read_stage_config(checkpoint)
    Stage(config, meta_network(config)).save(output, weights=weights)
