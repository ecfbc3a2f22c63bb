"""The state of an unfinished run on disk: written whole or not at all, resumable by any process.

`torch.distributed.checkpoint` writes it, so a sharded run saves and loads the same way. This is
working state; what is published is a stage folder (`Stage.save`).
"""

import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from cascade.train.distributed import Processes

_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(
    folder: Path,
    step: int,
    network: nn.Module,
    optimizer: Optimizer,
    ema: nn.Module | None,
    processes: Processes,
    kept: int,
) -> None:
    """Write `folder/step-N`, then drop all but the newest `kept` checkpoints.

    All processes call it. The checkpoint is written beside its place and renamed, so a run that is
    killed here leaves the one before untouched.
    """
    final, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    if processes.first:
        for cut_short in folder.glob(".step-*.partial"):
            shutil.rmtree(cut_short)
        partial.mkdir(parents=True)
    processes.barrier()
    with _alone_is_fine():
        dcp.save(_state(network, optimizer, ema), checkpoint_id=partial)
    processes.barrier()
    if processes.first:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in _steps(folder)[:-kept]:
            shutil.rmtree(folder / f"step-{old}")
    processes.barrier()


def load_checkpoint(
    folder: Path, network: nn.Module, optimizer: Optimizer, ema: nn.Module | None
) -> int:
    """Load the newest checkpoint into what is given; return its step, 0 if there is none."""
    steps = _steps(folder)
    if not steps:
        return 0
    state = _state(network, optimizer, ema)
    with _alone_is_fine():
        dcp.load(state, checkpoint_id=folder / f"step-{steps[-1]}")
    set_state_dict(
        network,
        optimizer,
        model_state_dict=state["network"],
        optim_state_dict=state["optimizer"],
    )
    if ema is not None:
        ema.load_state_dict(state["ema"])
    return steps[-1]


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Silence the library's surprise at a run of one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _state(network: nn.Module, optimizer: Optimizer, ema: nn.Module | None) -> dict[str, Any]:
    weights, moments = get_state_dict(network, optimizer)
    state: dict[str, Any] = {"network": weights, "optimizer": moments}
    if ema is not None:
        state["ema"] = ema.state_dict()
    return state


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match.group(1)) for match in found if match)
