"""`cascade checkpoint`: stages of what a run keeps."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.cli import values

checkpoint = typer.Typer(help="Make stages of what a run keeps.", no_args_is_help=True)


@checkpoint.command()
def consolidate(
    place: Annotated[
        Path,
        typer.Argument(
            parser=values.folder,
            metavar="RUN",
            help="A run's folder, whose newest checkpoint is taken, or that of a checkpoint.",
        ),
    ],
    output: Annotated[Path, values.output("A new folder: the stage.")],
    average: Annotated[
        str | None,
        typer.Option(
            parser=values.name,
            metavar="LABEL",
            help="Which average, such as std-0.05, or weights; else what the run would publish.",
        ),
    ] = None,
) -> None:
    """Write a checkpoint's weights, of however many processes, as a stage."""
    from cascade.training.consolidate import consolidate as write

    label = write(place, output, average)
    typer.echo(f"The stage is in {output}; its weights are '{label}'.")


@checkpoint.command()
def average(
    run: Annotated[
        Path,
        typer.Argument(
            parser=values.folder, metavar="RUN", help="A run's folder, which holds snapshots."
        ),
    ],
    std: Annotated[float, typer.Option(min=0.001, max=0.28, help="Its relative width.")],
    output: Annotated[Path, values.output("A new folder: the stage.")],
) -> None:
    """Make a power-function average of any width from a run's snapshots (Karras et al. 2024)."""
    from cascade.training.consolidate import average_afterwards

    error = average_afterwards(run, std, output)
    typer.echo(f"The stage is in {output}; its weighting of the past is {error:.1%} off.")
