"""`cascade info`: what a cascade folder holds, and what its stages take of a device's memory."""

from typing import Annotated

import typer

from cascade.cli import values
from cascade.config.folders import cascade_folder
from cascade.config.stage import Precision
from cascade.config.train import OptimizerName
from cascade.errors import UserError

_PANEL = "With --memory"


def info(
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
    batch_size: Annotated[
        int,
        typer.Option(min=1, max=2**16, help="Pictures worked on at once.", rich_help_panel=_PANEL),
    ] = 1,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**14,
            help="Side of the pictures; by default the stage's, or of its training crops.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="Of the arithmetic; weights stay in float32.", rich_help_panel=_PANEL),
    ] = "fp32",
    optimizer: Annotated[
        OptimizerName, typer.Option(help="Of the fine-tuning.", rich_help_panel=_PANEL)
    ] = "adamw",
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

    from rich.console import Console

    from cascade.info.folder import describe
    from cascade.info.memory import Plan, describe_memory

    # A path or an identifier such as "[v]" is no markup.
    console = Console(markup=False, emoji=False, highlight=False)
    if memory:
        console.print(describe_memory(path, Plan(batch_size, size, precision, optimizer)))
        return
    found = describe(path)
    if as_json:
        typer.echo(found.json())
    else:
        console.print(found.table())
    if found.faults:
        raise UserError(f"{found.folder} is not whole: {' '.join(found.faults)}")
