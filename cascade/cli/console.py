"""The console: what a command prints, and how it ends on a mistake."""

import io
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich import get_console
from rich.console import Console
from rich.text import Text

from cascade.errors import UserError


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


INTERRUPTED = 130
"""The exit status of a program that was interrupted."""


class ResumableInterrupt(Exception):
    """The program was interrupted, and the same command goes on where it was."""


@contextmanager
def resumable() -> Iterator[None]:
    """Mark work that the same command goes on with; the scheduler's SIGTERM ends it as Ctrl-C does.

    Raises:
        ResumableInterrupt: it was interrupted.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise ResumableInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


def run_command(program: Callable[[], object]) -> None:
    """Run a Typer program; a person's mistake is one sentence and exit status 2."""
    listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a character shows its code
            stream.reconfigure(errors="backslashreplace")
    try:
        program()
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.exit(1)
    except ResumableInterrupt:
        typer.echo("Interrupted; the same command goes on from here.", err=True)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer's, of a KeyboardInterrupt
            _interrupted()
        raise
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        # As `Text`: brackets in a path or in "[stage.unet]" are no markup.
        message = Text.assemble(("Error:", "bold red"), f" {sentence}")
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)


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
    sys.exit(INTERRUPTED)


def _lacks_memory(error: Exception) -> bool:
    """Return whether an allocation failed: on a CPU only a `RuntimeError`'s words say so."""
    told = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in told
    )
