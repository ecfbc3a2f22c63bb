"""A run's memory and disk: what does not fit is refused before it starts."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.environment import device_memory
from cascade.errors import UserError
from cascade.files import require_writable
from cascade.model.memory import FLOAT32, optimizer_bytes
from cascade.stage import meta_network


def require_room(runs: Iterable[tuple[StageConfig, TrainConfig]]) -> None:
    """Refuse to train what surely does not fit: weights, gradients and moments exceed all memory.

    Activations come on top of it (`cascade info --memory`).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = device_memory(device)
    for stage, run in runs:
        shapes = [parameter.shape for parameter in meta_network(stage).parameters()]
        weights = FLOAT32 * sum(shape.numel() for shape in shapes)
        averages = 0 if run.ema_decay is None else 1
        needed = (2 + averages) * weights + optimizer_bytes(shapes, run.optimizer.name)
        if needed > memory:
            raise UserError(
                f"Stage '{stage.name}' takes {needed / 2**30:.1f} GiB to be trained (weights, "
                f"gradients, {run.optimizer.name}), and {device} has {memory / 2**30:.1f} GiB in "
                "all; take a smaller network, optimizer adafactor, or a larger machine."
            )


def require_disk(
    folder: Path, runs: Iterable[tuple[StageConfig, TrainConfig]], besides: int = 0
) -> None:
    """Refuse to start runs whose results cannot be written, or would not fit on the disk.

    A checkpoint holds the weights, two optimizer moments and perhaps an average, in float32 (the
    moments of 8-bit AdamW in two bytes and a little for both); one more than is kept exists while a
    new one is written, and the stage is published beside them. What an earlier start left in the
    folder is part of that.

    Args:
        besides: bytes of what else will lie there, such as a copy of the text encoder.
    """
    require_writable(folder)
    needed = besides + sum(
        _weight_bytes(stage) * (_copies(run) * (run.checkpoints_kept + 1) + 1)
        for stage, run in runs
    )
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if free + held < needed:
        raise UserError(
            f"The run needs about {_amount(needed)} on the disk of {folder} but {_amount(free)} "
            "are free; free some, or choose another output folder."
        )


def _amount(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _copies(run: TrainConfig) -> float:
    """Return a checkpoint's size in units of the weights' size."""
    return 2.51 if run.optimizer.name == "adamw8bit" else 4.0


def _weight_bytes(stage: StageConfig) -> int:
    return sum(parameter.numel() for parameter in meta_network(stage).parameters()) * 4
