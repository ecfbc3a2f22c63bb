"""How every program of the project answers a person's mistake."""

import sys
from collections.abc import Callable

import typer
from rich.console import Console
from rich.text import Text

from cascade.errors import UserError

INTERRUPTED = 130
"""The exit status that Typer makes of a KeyboardInterrupt."""


def answer(program: Callable[[], object]) -> None:
    """Run a Typer program; a person's mistake is one sentence and exit status 2."""
    try:
        program()
    except UserError as error:
        # As `Text`: brackets in a path or in "[stage.unet]" are no markup.
        message = Text.assemble(("Error:", "bold red"), f" {error}")
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("Interrupted; the same command goes on from here.", err=True)
        raise
