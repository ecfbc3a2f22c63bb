"""The console command `cascade`: parse, compose, call."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cascade.cli.dreambooth import dreambooth
from cascade.cli.identifiers import identifiers
from cascade.cli.info import info
from cascade.cli.sample import sample
from cascade.cli.train import train
from cascade.errors import UserError

INTERRUPTED = 130
"""The exit status that Typer makes of a KeyboardInterrupt."""

app = typer.Typer(
    name="cascade",
    help="Train, personalise and sample an Imagen-style pixel cascade.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # People know these flags from diffusers with underscores; both spellings work.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
app.command()(dreambooth)
app.command()(sample)
app.command()(train)
app.command()(info)
app.command()(identifiers)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("dreamcascade"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; a person's mistake is one sentence and exit status 2."""
    try:
        app()
    except UserError as error:
        # As `Text`: brackets in a path or in "[stage.unet]" are no markup.
        message = Text.assemble(("Error:", "bold red"), f" {error}")
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("Interrupted; the same command goes on from here.", err=True)
        raise
