"""The console command `cascade`, put together of the commands here and those of plugins."""

import warnings
from typing import Annotated, Final

import typer

from cascade import __version__
from cascade.cli.assemble import assemble
from cascade.cli.checkpoint import checkpoint
from cascade.cli.console import run_command
from cascade.cli.data import data
from cascade.cli.diffusers_flags import KnowsDiffusers
from cascade.cli.doctor import doctor
from cascade.cli.dreambooth import dreambooth
from cascade.cli.embed import embed
from cascade.cli.evaluate import evaluate
from cascade.cli.formats import export_diffusers, import_cascade
from cascade.cli.identifiers import identifiers
from cascade.cli.info import info
from cascade.cli.sample import sample
from cascade.cli.serve import serve
from cascade.cli.serve_key import serve_key
from cascade.cli.train import train
from cascade.plugins import COMMANDS, points

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
app.command()(info)
app.command()(doctor)
app.command()(serve)
app.command()(serve_key)
app.command()(identifiers)
app.command("import")(import_cascade)
app.command()(export_diffusers)
app.add_typer(checkpoint, name="checkpoint")
app.add_typer(data, name="data")
app.add_typer(evaluate, name="evaluate")


_GROUPS: Final = {"bench": typer.Typer(help="Measure this machine.", no_args_is_help=True)}
for _point in points(COMMANDS).values():
    *_words, _name = _point.name.split()
    (_GROUPS[_words[0]] if _words else app).command(_name)(_point.load())
for _name, _group in _GROUPS.items():
    if _group.registered_commands:
        app.add_typer(_group, name=_name)


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
    run_command(app)
