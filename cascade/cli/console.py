"""The console: what a command prints, and how it ends on a mistake."""

import io
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import get_console
from rich.console import Console
from rich.text import Text

from cascade.errors import UserError
from cascade.launch import Launch
from cascade.training.interrupt import (
    PREEMPTION,
    Preempted,
    TimeIsUp,
    ended_early,
    mark_requeue,
    preempt,
)


class _ToConsole(logging.Handler):
    """Sentences as they are: a brace or a path in them is no markup; warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        warned = record.levelno >= logging.WARNING
        console = Console(stderr=True) if warned else get_console()
        console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)


def listen(quiet: bool = False) -> None:
    """Tell what the library logs, or its warnings alone."""
    logger = logging.getLogger("cascade")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    if not any(isinstance(one, _ToConsole) for one in logger.handlers):
        logger.addHandler(_ToConsole())
    logger.propagate = False


def _heard(quiet: bool) -> bool:
    listen(quiet)
    return quiet


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_heard, help="Tell only warnings and mistakes."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check everything, tell what would be done and about how long it takes, and do "
        "nothing.",
    ),
]


class Status(IntEnum):
    """Exit statuses of a command, beside 0 and the 1 of a crash."""

    MISTAKE = 2
    TIME_IS_UP = 3
    REQUEUE = 75  # EX_TEMPFAIL of sysexits.h
    INTERRUPTED = 130  # as shells tell SIGINT


class EarlyEnd(Exception):
    """The command ended early, and the same command goes on where it was."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(f"{reason}; the same command goes on from here.")
        self.status = status


@contextmanager
def resumable(run_dir: Path | None = None) -> Iterator[None]:
    """Mark work that the same command goes on with; a scheduler may preempt it.

    Args:
        run_dir: of a run that `torchrun` may have started; see `ended_early`.

    Raises:
        EarlyEnd: the work was interrupted or preempted, or its time is up.
    """
    before = {number: signal.signal(number, preempt) for number in PREEMPTION}
    try:
        if run_dir is not None and (status := ended_early(run_dir)) is not None:
            raise EarlyEnd(Status(status), "It was to end early")
        yield
    except Preempted as stop:
        if run_dir is not None and stop.leaves:
            mark_requeue(run_dir, Status.REQUEUE)
        raise EarlyEnd(Status.REQUEUE, "Preempted") from None
    except TimeIsUp as stop:
        if run_dir is not None:
            mark_requeue(run_dir, Status.TIME_IS_UP)
        raise EarlyEnd(Status.TIME_IS_UP, f"The time is up after step {stop.step}") from None
    except KeyboardInterrupt:
        raise EarlyEnd(Status.INTERRUPTED, "Interrupted") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_command(program: Callable[[], object]) -> None:
    """Run a Typer program; a person's mistake is one sentence and a status of its own."""
    listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a character shows its code
            stream.reconfigure(errors="backslashreplace")
    try:
        program()
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.exit(1)
    except EarlyEnd as end:
        if Launch.read().is_main:
            typer.echo(str(end), err=True)
        sys.exit(end.status)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:
        if end.code == Status.INTERRUPTED:  # Typer's, of a KeyboardInterrupt
            _interrupted()
        raise
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        # As `Text`: brackets in a path or in "[stage.unet]" are no markup.
        message = Text.assemble(("Error:", "bold red"), f" {sentence}")
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(Status.MISTAKE)


def _sentence(error: Exception) -> str | None:
    """Return the sentence for a user's mistake; None for an error of the program's own."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}; check the path, its rights and the disk."
    if isinstance(error, RecursionError):
        return "What was given is nested too deeply to be read; simplify it."
    if _lacks_memory(error):
        told = str(error).splitlines()[0] if str(error) else "of this machine"
        return (
            f"There is not enough memory ({told}); take a smaller batch or size, or see what "
            "'cascade info --memory' counts."
        )
    return None


def _interrupted() -> None:
    typer.echo("Interrupted.", err=True)
    sys.exit(Status.INTERRUPTED)


def _lacks_memory(error: Exception) -> bool:
    """Return whether an allocation failed: on a CPU only a `RuntimeError`'s words say so."""
    told = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in told
    )
