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
from cascade.launch import Launch
from cascade.progress import amount
from cascade.training.distributed import ALONE, Processes
from cascade.training.footprint import checkpoint_bytes, held


def require_room(runs: Iterable[tuple[StageConfig, TrainConfig]]) -> None:
    """Refuse to train what surely does not fit: weights, gradients and moments exceed all memory.

    Activations come on top of it (`cascade info --memory`).
    """
    launch = Launch.read()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processes = Processes(launch.rank, launch.world_size, device, launch.local_world_size)
    for stage, run in runs:
        found = held(stage, run, processes)
        beside = processes.local_world_size
        if device.type == "cuda":
            _require(stage, run, found.device, device)
            _require(stage, run, beside * found.host, torch.device("cpu"))
        else:  # the processes of a machine share its memory
            _require(stage, run, beside * (found.device + found.host), device)


def _require(stage: StageConfig, run: TrainConfig, needed: int, device: torch.device) -> None:
    memory = device_memory(device)
    if needed > memory:
        raise UserError(
            f"Stage '{stage.name}' takes {amount(needed)} to be trained (weights, gradients, "
            f"{run.optimizer.name}, averages), and {device} has {amount(memory)} in all; share it "
            "among more processes (train.parallel), or take a smaller network or a larger machine: "
            "'cascade train --plan' tells what fits."
        )


def require_disk(
    folder: Path, runs: Iterable[tuple[StageConfig, TrainConfig]], besides: int = 0
) -> None:
    """Refuse to start runs whose results cannot be written, or would not fit on the disk.

    One checkpoint more than is kept exists while a new one is written, and the stage is published
    beside them. What an earlier start left in the folder is part of that.

    Args:
        besides: bytes of what else will lie there, such as a copy of the text encoder.
    """
    require_writable(folder)
    needed = besides + sum(
        checkpoint_bytes(stage, run) * (run.checkpoints_kept + 1) + held(stage, run, ALONE).weights
        for stage, run in runs
    )
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if free + there < needed:
        raise UserError(
            f"The run needs about {amount(needed)} on the disk of {folder} but {amount(free)} "
            "are free; free some, or choose another output folder."
        )
