"""`cascade info`: what a cascade folder holds, and what its stages take of a device's memory."""

from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.options import Flag, Options, with_options
from cascade.config.folders import cascade_folder
from cascade.config.memory import MemoryConfig
from cascade.errors import UserError

_PANEL = "With --memory"

FLAGS = tuple(
    Flag(name, (name,), _PANEL) for name in ("batch_size", "size", "precision", "optimizer")
)


@with_options(MemoryConfig, FLAGS)
def info(
    options: Options[MemoryConfig],
    folder: Annotated[
        str | None,
        typer.Argument(
            parser=values.name,
            metavar="CASCADE",
            help="A cascade folder, or 'mini'; with --memory also a stage's TOML file.",
        ),
    ] = None,
    cascade: Annotated[
        str | None,
        typer.Option(parser=values.name, metavar="FOLDER", help="The same as CASCADE."),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Tell what sampling and fine-tuning will take.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as JSON, for programs.")] = False,
) -> None:
    """Show a cascade's stages, sizes, conventions, subject and licence, or the memory it needs."""
    path = values.either(folder, cascade, "cascade")
    if path.endswith(".toml") and not memory:
        raise UserError(
            f"{path} is a settings file; add --memory to tell what its stage takes, or give the "
            "folder of a cascade."
        )
    if not path.endswith(".toml"):
        cascade_folder(path)  # before torch is imported

    _show(path, as_json, options.settings() if memory else None)


def _show(path: str, as_json: bool, plan: MemoryConfig | None) -> None:
    """Print a cascade's table, or what the plan takes of it."""
    from rich.console import Console

    from cascade.info.folder import describe
    from cascade.info.memory import describe_memory

    # A path or an identifier such as "[v]" is no markup.
    console = Console(markup=False, emoji=False, highlight=False)
    if plan is not None:
        console.print(describe_memory(path, plan))
        return
    found = describe(path)
    if as_json:
        typer.echo(found.json())
    else:
        console.print(found.table())
    if found.faults:
        raise UserError(f"{found.folder} is not whole: {' '.join(found.faults)}")
