"""One look for every progress bar."""

from collections.abc import Callable

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


def progress_bar(console: Console | None = None, shown: bool = True) -> Progress:
    """A bar with count, time spent and time left; tasks need a field `details`, perhaps empty."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[details]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
    )


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
