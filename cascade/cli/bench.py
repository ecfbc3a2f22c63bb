"""`cascade bench kernels`: how fast the kernels are on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.errors import UserError

bench = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    pass


@bench.command()
def kernels(
    op: Annotated[
        list[str] | None, typer.Option("--op", help="An operation; may be repeated. All if none.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shapes", help="A part of the shapes' names; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for what is written.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and rounds.")] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose launch configurations for this GPU and use them."),
    ] = False,
) -> None:
    """Time the kernels beside their alternatives on this machine's GPU."""
    try:
        from bench.command import bench_kernels
    except ModuleNotFoundError as error:
        if error.name not in ("bench", "bench.command"):
            raise
        raise UserError(
            "The benchmark is no part of the installed package; run it from a checkout of the "
            "project (git clone, then make setup)."
        ) from None

    typer.echo(bench_kernels(op or (), shapes or (), output, quick=quick, tuning=tune))
