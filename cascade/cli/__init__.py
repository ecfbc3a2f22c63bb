"""The console command `cascade`: parse, compose, call."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from cascade.cli.dreambooth import dreambooth
from cascade.cli.identifiers import identifiers
from cascade.cli.info import info
from cascade.cli.sample import sample
from cascade.cli.train import train
from cascade.errors import UserError

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
        Console(stderr=True).print(f"[bold red]Error:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; the same command goes on from here.")
        sys.exit(130)
