"""Early ends of a run, noticed between steps: Ctrl-C, SIGTERM, the time given."""

import signal
import time
from enum import IntEnum
from types import FrameType, TracebackType
from typing import Any, Self


class Stop(IntEnum):
    """Reasons to stop before the last step; the larger one wins among processes."""

    NO = 0
    TIME = 1
    SIGNAL = 2


class TimeIsUp(Exception):
    """The time given to a run is over; its state is saved and the same command goes on from it.

    Attributes:
        step: how many steps are done.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"time is up after step {step}")
        self.step = step


class Interrupts:
    """Turns the first SIGINT or SIGTERM into a request; a second SIGINT stops at once.

    Args:
        deadline: when the time given is over, by `time.monotonic`; None is never.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline = deadline
        self._signalled = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over the two signals (only a program's main thread can)."""
        for number in (signal.SIGINT, signal.SIGTERM):
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
        if self._signalled:
            return Stop.SIGNAL
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return Stop.TIME if late else Stop.NO

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
