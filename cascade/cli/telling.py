"""The flags by which long work is told more or less of, or told instead of done."""

from typing import Annotated

import typer

from cascade.progress import be_quiet


def _heard(quiet: bool) -> bool:
    be_quiet(quiet)
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
