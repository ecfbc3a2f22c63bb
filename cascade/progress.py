"""Progress of long work: sentences in the log, and one look for every progress bar."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY: Final = 30.0
"""Seconds between two lines about a task where there is no terminal."""


_LOG: Final = logging.getLogger("cascade")


def say(sentence: str) -> None:
    """Log what is being done."""
    _LOG.info("%s", sentence, stacklevel=2)


def warn(sentence: str) -> None:
    """Log what is not as people may think."""
    _LOG.warning("%s", sentence, stacklevel=2)


def is_heard() -> bool:
    """Return whether anybody reads what is being done: the command line does, unless quiet."""
    return _LOG.isEnabledFor(logging.INFO)


def progress_bar(console: Console | None = None, shown: bool = True) -> Progress:
    """Make a bar with count, time spent and time left; tasks need a field `details`.

    In a log file it is a line now and then; where nobody hears what is being done, it is nothing.
    """
    console = console or get_console()
    shown = shown and is_heard()
    bar = Progress if console.is_terminal or console.is_jupyter else _Lines
    return bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[details]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
    )


class _Lines(Progress):
    """Progress that is no bar: each task's first step, its last, and a line now and then between.

    Rich draws nothing but a bar's last state where there is no terminal.
    """

    def __init__(self, *columns: Any, console: Console, disable: bool) -> None:
        super().__init__(*columns, console=console, disable=True)
        self._told: dict[TaskID, float] = {}
        self._silent = disable

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Note a task's progress, and tell it when it is time."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Note steps of a task, and tell them when it is time."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        task, now = self.tasks[self.task_ids.index(task_id)], time.monotonic()
        due = self._told.get(task_id, -EVERY) + EVERY
        if self._silent or due == float("inf") or not (task.finished or now >= due):
            return
        self._told[task_id] = float("inf") if task.finished else now
        left = task.time_remaining
        parts = [
            f"{task.description} {task.completed:.0f}/{task.total or 0:.0f}",
            task.fields["details"],
            spell(task.elapsed or 0.0) + (f", {spell(left)} left" if left else ""),
        ]
        self.console.print(
            "  ".join(filter(None, parts)), markup=False, highlight=False, soft_wrap=True
        )


def spell(seconds: float) -> str:
    """Say a length of time as a person would: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def amount(size: float) -> str:
    """Format a number of bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def stage_steps(bar: Progress, prefix: str = "") -> Callable[[str, int, int], None]:
    """Return what to call with (stage name, steps done, of how many): a row per stage.

    A row begins when its stage first reports, so a stage that never runs has none.
    """
    rows: dict[str, TaskID] = {}

    def on_step(stage: str, done: int, total: int) -> None:
        if stage not in rows:
            rows[stage] = bar.add_task(f"{prefix}{stage}", total=total, details="")
        bar.update(rows[stage], completed=done)

    return on_step


# transformers imports torchao wherever it finds it, and torchao tells, each time, which of its
# compiled parts do not fit this machine and which of its classes PyTorch will treat otherwise.
_IMPORTED: Final = ("torchao", "torch.utils._pytree")


@contextmanager
def silence(*talkers: str) -> Iterator[None]:
    """Let loggers tell of nothing but errors.

    Args:
        talkers: their names, "" being the root's; by default who talks while it is imported.
    """
    loggers = [logging.getLogger(name) for name in talkers or _IMPORTED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
