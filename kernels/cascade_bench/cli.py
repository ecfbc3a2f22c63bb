"""`cascade bench`, by entry points: how fast kernels, training, sampling and stages are here.

And what feeds a training, what its processes hold, and what a server bears.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cascade.cli import values
from cascade.cli.options import Flag, Options, with_options
from cascade.cli.shared import THREAD_FLAGS, BundleArgument, BundleOption
from cascade.errors import UserError
from cascade_bench.settings import (
    BenchConfig,
    DataBenchConfig,
    LaunchBenchConfig,
    MemoryBenchConfig,
    SampleBenchConfig,
    ServeBenchConfig,
    StageBenchConfig,
    TrainBenchConfig,
)

if TYPE_CHECKING:
    from cascade.results import Result

OUT_OF_TIME: Final = 3
"""The exit status when the budget is spent and cases are left."""

OUTPUT: Final = Path("runs/bench")
Output = Annotated[Path, values.output("Gets the record and its tables.")]


def _flags(*names: str) -> list[Flag]:
    return [Flag(name, (name,)) for name in names]


@with_options(BenchConfig, _flags("rounds", "repeats", "budget", "dry_run"))
def kernels(
    options: Options[BenchConfig],
    op: Annotated[
        list[str] | None, typer.Option("--op", help="An operation; may be repeated. All if none.")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shapes", help="A part of the shapes' names; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        values.output("Gets the record; runs/bench, or with --tune the user's own tables."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The first shapes alone: a look.")] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose launch configurations for this GPU and use them."),
    ] = False,
) -> None:
    """Time the kernels beside their alternatives on this machine's GPU."""
    config = options.settings()
    config = config.model_copy(update={"device": "cpu" if config.dry_run else "cuda"})
    if config.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported
    from cascade_bench.kernels.command import bench_kernels, tune_kernels

    if tune:
        told = tune_kernels(op or (), shapes or (), output, config)
        typer.echo(f"The launch table is {told}.")
        return
    _tell(*bench_kernels(op or (), shapes or (), output or OUTPUT, config, quick))


_TRAIN = ("against", "width", "side", "batch", "precision", "gradient_checkpointing")
_TIMING = ("rounds", "repeats", "budget", "device")


@with_options(
    TrainBenchConfig,
    [
        Flag("network", ("networks",)),
        Flag("modes", ("modes",), kind=str, parser=values.comma_separated, metavar="NAME,NAME"),
        *_flags(*_TRAIN),
        *_flags(*_TIMING),
    ],
)
def train(options: Options[TrainBenchConfig], output: Output = OUTPUT) -> None:
    """Time a call of a network and a step of each project's own training, with their memory."""
    config = options.settings()
    from cascade_bench.train import bench_train

    _tell(*bench_train(config, output))


@with_options(
    MemoryBenchConfig,
    [
        Flag("strategy", ("parallel.strategy",)),
        Flag("replicas", ("parallel.replicas",)),
        Flag("processes", ("processes",), kind=str, parser=values.numbers, metavar="1,2,..."),
        *_flags("network", "width", "side", "batch", "precision", "gradient_checkpointing"),
    ],
)
def memory(options: Options[MemoryBenchConfig], output: Output = OUTPUT) -> None:
    """Train a few steps by one process and several, and weigh them beside their plan."""
    config = options.settings()
    from cascade_bench.memory import bench_memory

    result, table = bench_memory(config, output)
    typer.echo(result.markdown([table]))


@with_options(LaunchBenchConfig, _flags("network", "rounds", "repeats"))
def launches(options: Options[LaunchBenchConfig], output: Output = OUTPUT) -> None:
    """Time what a call of a kernel takes of the CPU, on a GPU that is not there."""
    config = options.settings()
    from cascade_bench.kernels.launches import bench_launches

    _tell(*bench_launches(config, output))


@with_options(SampleBenchConfig, _flags("against", "steps", "rounds", "device"))
def sample(
    options: Options[SampleBenchConfig],
    cascade: Annotated[
        str | None,
        typer.Argument(parser=values.cascade, metavar="CASCADE", help="IF's shape if left out."),
    ] = None,
    bundle: BundleOption = None,
    output: Output = OUTPUT,
) -> None:
    """Time whole pictures, by every provider with the same weights and noise."""
    config = options.settings()
    from cascade.config.folders import cascade_folder
    from cascade_bench.sample import bench_sample

    folder = None if cascade is None else cascade_folder(cascade)
    _tell(*bench_sample(folder, bundle, config, output))


@with_options(
    DataBenchConfig,
    [
        Flag("data", ("data",), parser=values.folder, metavar="FOLDER"),
        Flag("modes", ("modes",), kind=str, parser=values.comma_separated, metavar="NAME,NAME"),
        Flag("size", ("sizes",), kind=str, parser=values.numbers, metavar="64,256,..."),
        *_flags("against", "workers", "batch", "records"),
        Flag("indexed", ("indexed",), kind=str, parser=values.numbers, metavar="1000000,..."),
        *_flags("pictures", "rounds", "repeats", "budget"),
    ],
)
def data(options: Options[DataBenchConfig], output: Output = OUTPUT) -> None:
    """Read the same pictures by every provider: how many a second, their start, their memory."""
    config = options.settings()
    from cascade_bench.data_bench import bench_data

    result, complete, large = bench_data(config, output)
    _tell(result, complete)
    for table in large:
        typer.echo(table.markdown())


_STAGES = ("against", "rounds", "repeats", "budget", "steps", "device")


@with_options(
    StageBenchConfig,
    [
        Flag("batch", ("batches",), kind=str, parser=values.numbers, metavar="1,2,..."),
        *_flags(*_STAGES),
        *THREAD_FLAGS,
    ],
)
def stages(
    options: Options[StageBenchConfig],
    folder: BundleArgument = None,
    bundle: BundleOption = None,
    output: Output = OUTPUT,
) -> None:
    """Time a bundle's engines beside PyTorch's and diffusers' networks with the same weights."""
    chosen = values.either(folder, bundle, "bundle")
    config = options.settings()
    from cascade_bench.stages import bench_stages
    from cascade_export.bundle.bundle import Bundle

    result, complete, first = bench_stages(Bundle.open(chosen), config, output)
    _tell(result, complete)
    for table in first:
        typer.echo(table.markdown())


_LOAD = ("seconds", "clients", "patience", "waiting", "retries", "large", "rounds", "soak")


@with_options(
    ServeBenchConfig,
    [
        Flag("cascade", ("cascade",), parser=values.cascade, metavar="CASCADE"),
        Flag("bundle", ("bundle",), parser=values.folder, metavar="FOLDER"),
        Flag("parts", ("parts",), kind=str, parser=values.comma_separated, metavar="NAME,NAME"),
        *_flags("against", "steps"),
        Flag("loads", ("loads",), kind=str, parser=values.decimals, metavar="0.5,1,..."),
        *_flags(*_LOAD, "leaving", "streamed", "threads", "device", "seed"),
        Flag("serve", ("options",), parser=values.name, metavar="A.B=C"),
    ],
)
def serve(options: Options[ServeBenchConfig], output: Output = OUTPUT) -> None:
    """Load a real server: what it draws, refuses and loses, who waits, beside naive servers."""
    config = options.settings()
    for package in ("fastapi", "httpx2", "prometheus_client", "uvicorn"):
        if find_spec(package) is None:
            raise UserError(
                f"Servers are measured with {package}; run: pip install "
                "'dreamcascade[serve,peers]'."
            )
    from cascade_bench.serve.command import bench_serve

    result, tables = bench_serve(config, output)
    typer.echo(result.markdown(tables))


def _tell(result: "Result", complete: bool) -> None:
    """Print the tables, and whether there is more to do."""
    from cascade_bench.tables import tables

    typer.echo(result.markdown(tables(result)))
    if not complete:
        typer.echo("The time is over; the same command goes on from here.")
        raise typer.Exit(OUT_OF_TIME)
