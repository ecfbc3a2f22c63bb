"""Early ends of a run, noticed between steps: Ctrl-C, preemption, the time given.

A scheduler preempts a run by SIGTERM or SIGUSR1: its state is saved, and the same command is to be
queued again. `torchrun` passes on no status of its processes and starts those anew that end early,
so a mark in the run's folder says both what was meant.
"""

import json
import shutil
import signal
import socket
import time
from enum import IntEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

from cascade.files import read_json, write_bytes
from cascade.launch import Launch

PREEMPTION: Final = (signal.SIGTERM, signal.SIGUSR1)
"""The signals by which a scheduler asks for its machine."""
REQUEUE_MARK: Final = ".requeue"
"""In a run's folder: it ended early under `torchrun` and is to be started again."""


class Stop(IntEnum):
    """Reasons to stop before the last step; the larger one wins among processes."""

    NO = 0
    TIME = 1
    INTERRUPT = 2
    PREEMPTION = 3


class TimeIsUp(Exception):
    """The time given to a run is over; its state is saved and the same command goes on from it.

    Attributes:
        step: how many steps are done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"time is up after step {step}")
        self.step = step


class Preempted(KeyboardInterrupt):
    """The scheduler wants the machine, and what was done so far is saved.

    Attributes:
        leaves: whether it is this process's machine, and all processes have ended at one step. Else
            another one's machine leaves, or `torchrun` ends this process because another failed.
    """

    def __init__(self, leaves: bool = False) -> None:
        super().__init__("preempted")
        self.leaves = leaves


def preempt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal of `PREEMPTION` where there is no step to be ended first."""
    raise Preempted


class Interrupts:
    """Turns the first signal into a request; a SIGINT after it stops at once.

    Args:
        deadline: when the time given is over, by `time.monotonic`; None is never.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._signalled = Stop.NO
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals (only a program's main thread can)."""
        for number in (signal.SIGINT, *PREEMPTION):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: its owner handles signals
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wanted(self) -> Stop:
        """Return whether and why this process was asked to stop."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return self._signalled or (Stop.TIME if late else Stop.NO)

    def end(self, stop: Stop, step: int) -> BaseException:
        """Return what ends a run whose processes have agreed to stop after a step."""
        if stop is Stop.TIME:
            return TimeIsUp(step)
        if stop is Stop.PREEMPTION:
            return Preempted(leaves=self._signalled is Stop.PREEMPTION)
        return KeyboardInterrupt()

    def _note(self, number: int, frame: FrameType | None) -> None:
        reason = Stop.PREEMPTION if number in PREEMPTION else Stop.INTERRUPT
        self._signalled = max(self._signalled, reason)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def mark_requeue(run_dir: Path, status: int) -> None:
    """Note under `torchrun` that this machine's processes end early, with a status."""
    launch = Launch.read()
    if launch.torchrun is not None:
        note = {"torchrun": launch.torchrun, "status": status}
        write_bytes(json.dumps(note).encode(), run_dir / REQUEUE_MARK / socket.gethostname())


def ended_early(run_dir: Path) -> int | None:
    """Return the status of an early end after which `torchrun` has started this process anew.

    None is any other start: also that of a process whose machine stays while another one leaves.
    """
    launch = Launch.read()
    return noted_status(run_dir, launch.torchrun) if launch.restarts else None


def noted_status(run_dir: Path, torchrun: str | None = None) -> int | None:
    """Return the status with which this machine's processes ended early, if they did.

    Args:
        torchrun: that started them; any, if left out.
    """
    mark = run_dir / REQUEUE_MARK / socket.gethostname()
    if not mark.is_file():
        return None
    note = read_json(mark, f"remove {mark.parent}")
    return int(str(note["status"])) if torchrun in (None, note["torchrun"]) else None


def clear_requeue(run_dir: Path) -> None:
    """Remove the marks of a run that goes on."""
    shutil.rmtree(run_dir / REQUEUE_MARK, ignore_errors=True)
