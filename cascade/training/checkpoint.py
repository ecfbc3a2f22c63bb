"""The state of an unfinished run on disk: written whole or not at all, resumable by any process.

`torch.distributed.checkpoint` writes it, while the run goes on, each process its part; it is read
by any number of processes that share the network in any way. This is working state; what is
published is a stage folder (`Stage.save`).
"""

import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.progress import warn
from cascade.training.distributed import Processes
from cascade.training.parallel import is_shared
from cascade.training.state import Progress, TrainState, part_of

CHECKPOINTS: Final = "checkpoints"
"""The folder of a run's checkpoints."""
SNAPSHOTS: Final = "snapshots"
"""The folder of its power-function averages of old, from which others are made."""
_NAME: Final = re.compile(r"step-(\d+)")
_UNWRITABLE: Final = (CheckpointException, OSError, RuntimeError)
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


def written_aside(run: TrainConfig) -> bool:
    """Return whether checkpoints are written while the run goes on."""
    # The library cannot copy torchao's 8-bit moments aside.
    return run.checkpoint_async and run.optimizer.name != "adamw8bit"


class Checkpoints:
    """The checkpoints `folder/step-N` of a run; every process calls every method.

    Args:
        kept: how many, the newest; None keeps all.

    One is written beside its place and renamed, so a run that is killed meanwhile leaves the one
    before untouched. As a context it ends when the last one is whole.
    """

    def __init__(
        self,
        folder: Path,
        config: StageConfig,
        run: TrainConfig,
        processes: Processes,
        kept: int | None = None,
    ) -> None:
        self.folder = folder
        self._config, self._processes, self._kept = config, processes, kept
        self._pending: tuple[int, Future[Any]] | None = None
        self._alone = processes.world_size == 1
        self._aside = written_aside(run)
        self._silence = ExitStack()
        self._copies = not is_shared(run.parallel, processes)
        # A group of its own: what is agreed on in the background must not meet the steps' sums.
        self._group = None if self._alone else dist.new_group(backend="gloo")
        cuda = processes.device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=cuda,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=cuda,
            )
        )

    def __enter__(self) -> Self:
        """Take part."""
        if self._alone:
            self._silence.enter_context(alone_is_fine())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the last one, unless the run was told to stop at once."""
        with self._silence:
            if error is None or isinstance(error, Exception):
                self.wait()
            self._stager.close()

    def save(self, step: int, values: dict[str, Any]) -> None:
        """Copy the tensors aside, and write them while the run goes on.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        partial = self._partial(step)
        if self._processes.is_main:
            _sweep(self.folder)
            text = self._config.model_dump_json(indent=2) + "\n"
            write_bytes(text.encode(), partial / "config.json")
        self._processes.barrier()
        if self._copies:
            values = part_of(values, self._processes.rank, self._processes.world_size)
        self._pending = step, self._write(values, partial)

    def poll(self) -> None:
        """Give the one that is being written its name, if it is whole by now."""
        if self._pending is not None and self._processes.is_main:
            step, written = self._pending
            if written.done() and written.exception() is None:
                self._finish(step)

    def wait(self) -> None:
        """Wait until the one that is being written is whole.

        Raises:
            UserError: it could not be written.
        """
        if self._pending is None:
            return
        step, written = self._pending
        self._pending = None
        try:
            written.result()
        except _UNWRITABLE as error:
            if self._processes.is_main:
                _sweep(self.folder)
            raise UserError(
                f"The checkpoint of step {step} cannot be written into {self.folder} "
                f"({_cause(error)}); free the disk, then start again: {kept_state(self.folder)}."
            ) from None
        if self._processes.is_main:
            self._finish(step)
        self._processes.barrier()

    def load(self, state: TrainState) -> Progress:
        """Load the newest one that is whole; return how far it was, 0 if there is none at all.

        One that cannot be read is named, and the one before it is taken. Nothing in it is executed.
        """
        steps = checkpoint_steps(self.folder)
        for step in reversed(steps):
            place = self.folder / f"step-{step}"
            try:
                images = state.load(place, self._alone)
            except _UNREADABLE as error:
                warn(f"{place} cannot be read ({_cause(error)}); it is left out.")
            else:
                return Progress(step, images)
        if steps:
            raise UserError(
                f"No checkpoint in {self.folder} can be read; put a copy back, or remove the "
                "folder to begin anew."
            )
        return Progress(0, 0)

    def _write(self, values: dict[str, Any], partial: Path) -> Future[Any]:
        if self._aside:
            written = dcp.async_save(
                values,
                checkpoint_id=partial,
                process_group=self._group,
                async_stager=self._stager,
                no_dist=self._alone,
            )
            return cast("Future[Any]", written)
        at_once: Future[Any] = Future()
        try:
            dcp.save(values, checkpoint_id=partial, no_dist=self._alone)
            at_once.set_result(None)
        except _UNWRITABLE as error:
            at_once.set_exception(error)
        return at_once

    def _partial(self, step: int) -> Path:
        return self.folder / f".step-{step}.partial"

    def _finish(self, step: int) -> None:
        """Rename what is whole, and drop all but the newest few."""
        partial, final = self._partial(step), self.folder / f"step-{step}"
        if not partial.is_dir():  # it has its name already
            return
        _remove(final)
        partial.rename(final)
        for old in checkpoint_steps(self.folder)[: -self._kept] if self._kept else ():
            _remove(self.folder / f"step-{old}")


@contextmanager
def alone_is_fine() -> Iterator[None]:
    """Silence the library's surprise at a run of one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Say in a sentence that a checkpoint cannot be read."""
    try:
        yield
    except _UNREADABLE as error:
        raise UserError(
            f"{checkpoint} cannot be read ({_cause(error)}); take another one."
        ) from None


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


def _cause(error: BaseException) -> str:
    """Return the first line of an error, of this process or of the first one that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
