"""How every program of the project answers a person's mistake."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from cascade.errors import UserError

INTERRUPTED = 130
"""The exit status of a program that was interrupted."""


class GoesOn(Exception):
    """The program was interrupted, and the same command goes on where it was."""


@contextmanager
def goes_on() -> Iterator[None]:
    """Mark work that the same command goes on with; the scheduler's SIGTERM ends it as Ctrl-C does.

    Raises:
        GoesOn: it was interrupted.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise GoesOn from None
    finally:
        signal.signal(signal.SIGTERM, before)


def answer(program: Callable[[], object]) -> None:
    """Run a Typer program; a person's mistake is one sentence and exit status 2."""
    try:
        program()
    except UserError as error:
        # As `Text`: brackets in a path or in "[stage.unet]" are no markup.
        message = Text.assemble(("Error:", "bold red"), f" {error}")
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)
    except GoesOn:
        typer.echo("Interrupted; the same command goes on from here.", err=True)
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer's, of a KeyboardInterrupt
            typer.echo("Interrupted.", err=True)
        raise
