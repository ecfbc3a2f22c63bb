"""`cascade bench`: how fast kernels, training, sampling and exported stages are here."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cascade.cli import values
from cascade.cli.bundle import BundleArgument, BundleOption

if TYPE_CHECKING:
    from cascade.results import Result

OUT_OF_TIME: Final = 3
"""The exit status when the budget is spent and cases are left."""

bench = typer.Typer(help="Measure this machine.", no_args_is_help=True)


OUTPUT = Path("runs/bench")
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Prove the plumbing with tiny cases on a CPU.")
]
Rounds = Annotated[int, typer.Option(min=2, max=10_000, help="Turns of each provider.")]
Budget = Annotated[
    float | None, typer.Option(min=0, help="Minutes; no case begins that is likely to end later.")
]
Shapes = Annotated[
    list[str] | None, typer.Option("--shapes", help="A part of the cases' names; may be repeated.")
]


@bench.command()
def kernels(
    op: Annotated[
        list[str] | None, typer.Option("--op", help="An operation; may be repeated. All if none.")
    ] = None,
    shapes: Shapes = None,
    rounds: Rounds = 6,
    budget: Budget = None,
    output: Annotated[
        Path | None,
        values.output("Folder for what is written; runs/bench, or with --tune the user's table."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes: a look.")] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose launch configurations for this GPU and use them."),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Time the kernels beside their alternatives on this machine's GPU."""
    if dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported
    from cascade_bench.kernels.command import bench_kernels, tune_kernels
    from cascade_bench.problem import BenchConfig

    device = "cpu" if dry_run else "cuda"
    config = BenchConfig(rounds=rounds, budget=budget, device=device, dry_run=dry_run)
    if tune:
        told = tune_kernels(op or (), shapes or (), output, config)
        typer.echo(f"The launch table is {told}.")
        return
    found = bench_kernels(op or (), shapes or (), output or OUTPUT, config, quick)
    _tell(*found)


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
    ] = OUTPUT,
) -> None:
    """Time a bundle's engines beside PyTorch's and diffusers' networks with the same weights."""
    chosen = values.either(folder, bundle, "bundle")
    from cascade.environment import usable_device
    from cascade.progress import progress_bar, stage_steps
    from cascade_export.bench.stages import BenchSettings, bench_stages
    from cascade_export.bench.tables import bench_tables, write_bench
    from cascade_export.bundle.bundle import Bundle

    settings = BenchSettings.of_lists(batch, against, rounds, steps, usable_device(device))
    opened = Bundle.open(chosen)
    with progress_bar() as bar:
        result = bench_stages(opened, settings, stage_steps(bar))
    path = write_bench(result, output)
    typer.echo(bench_tables(result))
    typer.echo(f"The results are {path}.")


def _tell(result: "Result", complete: bool) -> None:
    """Print the tables, and whether there is more to do."""
    from cascade_bench.tables import tables

    typer.echo(result.markdown(tables(result)))
    if not complete:
        typer.echo("The time is over; the same command goes on from here.")
        raise typer.Exit(OUT_OF_TIME)
