"""The state of an unfinished run on disk: written whole or not at all, resumable by any process.

`torch.distributed.checkpoint` writes it, so a sharded run saves and loads the same way. This is
working state; what is published is a stage folder (`Stage.save`).
"""

import io
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from cascade.errors import UserError
from cascade.progress import warn
from cascade.training.distributed import Processes

CHECKPOINTS: Final = "checkpoints"
"""The folder of a run's checkpoints."""
_NAME: Final = re.compile(r"step-(\d+)")
# Everything that the library raises for files that are truncated, damaged or of another network.
_UNREADABLE: Final = (
    CheckpointException,
    pickle.UnpicklingError,
    AssertionError,
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


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
    if processes.is_main:
        _sweep(folder)
        partial.mkdir(parents=True)
    processes.barrier()
    try:
        with _alone_is_fine():
            dcp.save(_state(network, optimizer, ema), checkpoint_id=partial)
    except (CheckpointException, OSError, RuntimeError) as error:
        if processes.is_main:
            _sweep(folder)
        raise UserError(
            f"The checkpoint of step {step} cannot be written into {folder} ({_cause(error)}); "
            f"free the disk, then start again: {kept_state(folder)}."
        ) from None
    processes.barrier()
    if processes.is_main:
        _remove(final)
        partial.rename(final)
        for old in checkpoint_steps(folder)[:-kept]:
            _remove(folder / f"step-{old}")
    processes.barrier()


def load_checkpoint(
    folder: Path, network: nn.Module, optimizer: Optimizer, ema: nn.Module | None
) -> int:
    """Load the newest checkpoint that is whole; return its step, 0 if there is none at all.

    One that cannot be read is named, and the one before it is taken. Nothing in it is executed.
    """
    steps = checkpoint_steps(folder)
    for step in reversed(steps):
        place = folder / f"step-{step}"
        try:
            _load(place, network, optimizer, ema)
        except _UNREADABLE as error:
            warn(f"{place} cannot be read ({_cause(error)}); it is left out.")
        else:
            return step
    if steps:
        raise UserError(
            f"No checkpoint in {folder} can be read; put a copy back, or remove the folder to "
            "begin anew."
        )
    return 0


def checkpoint_steps(folder: Path) -> list[int]:
    """List the steps of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match.group(1)) for match in found if match)


def kept_state(folder: Path) -> str:
    """Say what a run that stops now goes on from."""
    steps = checkpoint_steps(folder)
    return f"the state of step {steps[-1]} is kept" if steps else "no checkpoint had been written"


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint and what was cut short, the newest last."""
    for step in checkpoint_steps(folder):
        _remove(folder / f"step-{step}")
    _sweep(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint whole or not at all: under its name nobody sees half of one."""
    if checkpoint.is_dir():
        doomed = checkpoint.with_name(f".{checkpoint.name}.old.partial")
        shutil.rmtree(doomed, ignore_errors=True)
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)


def _sweep(folder: Path) -> None:
    """Remove what was cut short while it was written or removed."""
    for cut_short in folder.glob(".step-*.partial"):
        shutil.rmtree(cut_short, ignore_errors=True)


def _load(place: Path, network: nn.Module, optimizer: Optimizer, ema: nn.Module | None) -> None:
    state = _state(network, optimizer, ema)
    with _alone_is_fine():
        dcp.load(state, storage_reader=SafeReader(place), planner=SafePlanner())
    set_state_dict(
        network,
        optimizer,
        model_state_dict=state["network"],
        optim_state_dict=state["optimizer"],
    )
    if ema is not None:
        ema.load_state_dict(state["ema"])


def _cause(error: BaseException) -> str:
    """Return the first line of an error, of this process or of the first one that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


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


_DTYPES: Final = frozenset(
    name for name, value in vars(torch).items() if isinstance(value, torch.dtype)
)
_ALLOWED: Final = {
    "torch": frozenset({"Size"}) | _DTYPES,
    "torch.serialization": frozenset({"_get_layout"}),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    # Where the checkpoint was written: a name, nothing more. Python 3.13 moved the class.
    "pathlib": frozenset({"PosixPath", "WindowsPath"}),
    "pathlib._local": frozenset({"PosixPath", "WindowsPath"}),
}


class SafeReader(FileSystemReader):
    """A reader whose index may hold nothing but what the writer puts there."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index, once it is known to be harmless.

        Raises:
            pickle.UnpicklingError: it names anything that no index holds.
        """
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = _Index(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("its .metadata is no index of a checkpoint")
        return super().read_metadata(*args, **kwargs)


class SafePlanner(DefaultLoadPlanner):
    """A planner to which a value that is no tensor is plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take one value, unless it is more than data."""
        torch.load(value, map_location="cpu", weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, frozenset()):
            raise pickle.UnpicklingError(f"its .metadata names {module}.{name}")
        return super().find_class(module, name)
