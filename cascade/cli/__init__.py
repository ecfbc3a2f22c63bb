"""The console command `cascade`: parse, compose, call."""

import warnings
from typing import Annotated

import typer

from cascade import __version__
from cascade.cli.assemble import assemble
from cascade.cli.bench import bench
from cascade.cli.diffusers_flags import KnowsDiffusers
from cascade.cli.doctor import doctor
from cascade.cli.dreambooth import dreambooth
from cascade.cli.embed import embed
from cascade.cli.evaluate import evaluate
from cascade.cli.export import export
from cascade.cli.export_triton import export_triton
from cascade.cli.formats import export_diffusers, import_cascade
from cascade.cli.identifiers import identifiers
from cascade.cli.info import info
from cascade.cli.mistakes import answer
from cascade.cli.sample import sample
from cascade.cli.train import train

app = typer.Typer(
    name="cascade",
    help="Train, personalise and sample an Imagen-style pixel cascade.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # People know these flags from diffusers with underscores; both spellings work.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
app.command(cls=KnowsDiffusers)(dreambooth)
app.command()(sample)
app.command()(train)
app.command()(assemble)
app.command()(embed)
app.command()(export)
app.command()(export_triton)
app.command()(info)
app.command()(doctor)
app.command()(identifiers)
app.command("import")(import_cascade)
app.command()(export_diffusers)
app.add_typer(evaluate, name="evaluate")
app.add_typer(bench, name="bench")


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command."""
    warnings.filterwarnings("ignore", module="PIL")  # of a picture's damaged notes
    answer(app)
