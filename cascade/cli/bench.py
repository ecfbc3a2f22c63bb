"""`cascade bench`: how fast the kernels, or an exported cascade's stages, are on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.bundle import BundleArgument, BundleOption
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
        values.output("Folder for what is written."),
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


@bench.command()
def stages(
    folder: BundleArgument = None,
    bundle: BundleOption = None,
    batch: Annotated[str, typer.Option(help="Pictures at a time, as a list.")] = "1,2,4",
    against: Annotated[
        str, typer.Option(help="A list of eager, compiled and diffusers.")
    ] = "eager,compiled",
    rounds: Annotated[int, typer.Option(min=2, max=10_000, help="Turns of each.")] = 5,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Of each stage, for the first picture.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    output: Annotated[
        Path,
        values.output("Folder for the results."),
    ] = Path("runs/bench"),
) -> None:
    """Time a bundle's engines beside PyTorch's and diffusers' networks with the same weights."""
    chosen = values.either(folder, bundle, "bundle")
    from cascade.environment import usable_device
    from cascade.progress import progress_bar, stage_steps
    from cascade_export.bench import BenchSettings, bench_stages
    from cascade_export.bench_report import bench_tables, write_bench
    from cascade_export.bundle import Bundle

    settings = BenchSettings.of_lists(batch, against, rounds, steps, usable_device(device))
    opened = Bundle.open(chosen)
    with progress_bar() as bar:
        result = bench_stages(opened, settings, stage_steps(bar))
    path = write_bench(result, output)
    typer.echo(bench_tables(result))
    typer.echo(f"The results are {path}.")
