"""How the command line tells what the library logs, and the flags that make it more or less."""

import logging
from typing import Annotated

import typer
from rich import get_console
from rich.console import Console


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
