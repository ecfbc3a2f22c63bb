"""Settings of the benchmarks; no torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cascade.config.base import MOST_THREADS, AtOnce, Frozen, Rows, Seed, Share, Side, Size, Width
from cascade.config.engine import EngineOptions
from cascade.config.parallel import ParallelConfig
from cascade.config.stage import Steps
from cascade.config.train import Recomputation
from cascade.launch import cores

Rounds = Annotated[int, Field(strict=True, ge=2, le=10_000, description="turns of each provider")]
Arithmetic = Literal["fp32", "bf16"]
GradientCheckpointing = Annotated[
    Recomputation, Field(description="what a step computes again in its backward pass")
]
Repeats = Annotated[
    int, Field(strict=True, ge=1, le=10_000, description="readings of each in a turn")
]


NarrowWidth = Annotated[Width | None, Field(description="channels of the first level instead")]
NarrowSide = Annotated[Side | None, Field(description="side of the pictures instead, pixels")]


class BenchConfig(Frozen):
    """Settings of a benchmark."""

    rounds: Rounds = 6
    repeats: Repeats = 4
    budget: Annotated[float, Field(strict=True, ge=0, le=10**6)] | None = Field(
        default=None, description="minutes; no case begins that is likely to end later"
    )
    device: str = Field(default="cpu", description="where to measure: cpu, cuda, ...")
    dry_run: bool = Field(
        strict=True, default=False, description="prove the plumbing with tiny cases on a CPU"
    )


class TrainBenchConfig(BenchConfig):
    """Settings of `cascade bench train`."""

    networks: tuple[str, ...] = Field(
        default=("mini-base64",),
        min_length=1,
        description="one of the project's configurations; may be repeated",
    )
    against: str = Field(
        min_length=1,
        default="eager,compiled",
        description="a list of eager, compiled, graphs (CUDA graphs), triton, triton-compiled, "
        "triton-graphs, diffusers, diffusers-compiled and imagen-pytorch; the first is what others "
        "are held against",
    )
    width: NarrowWidth = None
    side: NarrowSide = None
    batch: Rows = Field(default=2, description="pictures of a step")
    precision: Arithmetic = Field(
        default="fp32", description="in bf16 a call has its weights in it, a step autocast"
    )
    modes: tuple[Literal["forward", "step"], ...] = Field(
        default=("forward", "step"),
        min_length=1,
        description="a call without gradients, or a step of each project's own training, as a list",
    )
    gradient_checkpointing: GradientCheckpointing = "none"


class SampleBenchConfig(BenchConfig):
    """Settings of `cascade bench sample`."""

    rounds: Rounds = 3
    repeats: Repeats = 1
    steps: int = Field(default=10, strict=True, ge=2, le=1000, description="of each stage")
    against: str = Field(
        min_length=1,
        default="eager",
        description="a list of eager, compiled, engine and diffusers; engine needs a bundle",
    )


class StageBenchConfig(BenchConfig):
    """Settings of `cascade bench stages`."""

    rounds: Rounds = 5
    batches: tuple[AtOnce, ...] = Field(
        default=(1, 2, 4), min_length=1, description="pictures at a time, as a list"
    )
    against: str = Field(
        min_length=1,
        default="eager,compiled",
        description="a list of eager, compiled and diffusers",
    )
    engines: EngineOptions = Field(
        default=EngineOptions(), description="how the bundle's own engines run"
    )
    steps: int | None = Field(
        default=None,
        strict=True,
        gt=0,
        le=1000,
        description="of each stage, for the first picture; the checkpoint's if left out",
    )
    first_picture: bool = Field(
        strict=True, default=True, description="time the first picture of a fresh process as well"
    )


class MemoryBenchConfig(Frozen):
    """Settings of `cascade bench memory`."""

    network: str = Field(default="mini-base64", description="one of the project's configurations")
    width: NarrowWidth = None
    side: NarrowSide = None
    batch: AtOnce = Field(default=4, description="pictures of a step of each process")
    processes: tuple[Annotated[int, Field(strict=True, gt=0, le=64)], ...] = Field(
        default=(1, 2, 4), min_length=1, description="numbers of processes, as a list"
    )
    parallel: ParallelConfig = Field(
        default=ParallelConfig(), description="how they share the network"
    )
    precision: Arithmetic = Field(
        default="fp32", description="of the arithmetic; weights are float32"
    )
    gradient_checkpointing: GradientCheckpointing = "none"


class LaunchBenchConfig(BenchConfig):
    """Settings of `cascade bench launches`."""

    repeats: Repeats = 16
    network: str = Field(default="if-i-m", description="one of the project's configurations")


class DataBenchConfig(BenchConfig):
    """Settings of `cascade bench data`."""

    rounds: Rounds = 5
    repeats: Repeats = 1
    against: str = Field(
        min_length=1,
        default="ours,webdataset,webdataset-reduced,datasets",
        description="a list of ours, webdataset, webdataset-reduced (JPEGs decoded no larger than "
        "it takes, as ours) and datasets; the first is what others are held against",
    )
    data: Path | None = Field(
        default=None,
        description="a pack's folder; JPEGs like photos, of 512x384 to 2048x1536 pixels, are made "
        "where it is left out",
    )
    modes: tuple[Literal["speed", "start-up", "memory"], ...] = Field(
        default=("speed", "start-up", "memory"),
        min_length=1,
        description="pictures a second, what opening a large pack takes, and what reading on in "
        "it holds, as a list",
    )
    sizes: tuple[Size, ...] = Field(
        default=(64, 256, 1024), min_length=1, description="sides of the pictures, pixels, a list"
    )
    workers: Annotated[int, Field(strict=True, gt=0, le=256)] = Field(
        default=2, description="processes that decode"
    )
    batch: AtOnce = Field(default=32, description="pictures of a batch")
    records: Annotated[int, Field(strict=True, gt=0, le=10**6)] = Field(
        default=256, description="pictures of a reading, and of the pack that is made"
    )
    indexed: tuple[Annotated[int, Field(strict=True, gt=0, le=10**9)], ...] = Field(
        default=(10**6, 10**7, 10**8),
        min_length=1,
        description="records of the packs that are opened, whose shards are one and the same, a "
        "list; the memory is of the last",
    )
    pictures: Annotated[int, Field(strict=True, gt=0, le=10**9)] = Field(
        default=200_000, description="pictures read for the memory"
    )


ServePart = Literal["load", "mixture", "soak", "against"]
Span = Annotated[float, Field(strict=True, gt=0, le=10**5)]


class ServeBenchConfig(Frozen):
    """Settings of `cascade bench serve`."""

    cascade: str | None = Field(
        default=None,
        description="a cascade folder; beside a bundle what that was made of, for the naive "
        "servers; 'mini' if neither is given",
    )
    bundle: Path | None = Field(
        default=None, description="what our server serves, a bundle made by 'cascade export'"
    )
    parts: tuple[ServePart, ...] = Field(
        default=("load", "mixture", "soak", "against"),
        min_length=1,
        description="requests that arrive at several rates, a small request beside a large one, "
        "clients that leave and servers that end, and naive servers in turn with ours, as a list",
    )
    against: str = Field(
        min_length=1,
        default="eager",
        description="a list of eager (the cascade by PyTorch) and diffusers (its pipelines, for a "
        "cascade of IF's kind), each behind a lock",
    )
    steps: Steps | None = Field(
        default=None, description="of each stage; the checkpoint's if left out"
    )
    loads: tuple[Annotated[float, Field(strict=True, gt=0, le=100)], ...] = Field(
        default=(0.5, 1.0, 2.0, 4.0),
        min_length=1,
        description="rates at which requests arrive, in capacities of the server, as a list",
    )
    seconds: Span = Field(default=30.0, description="for which requests arrive at each rate")
    clients: AtOnce = Field(default=8, description="clients, each with its key")
    patience: Span = Field(
        default=60.0, description="seconds after which a picture is late, which the server is told"
    )
    waiting: Annotated[int, Field(strict=True, gt=0, le=10**6)] = Field(
        default=16, description="pictures that may wait at our server; it refuses more"
    )
    retries: Annotated[int, Field(strict=True, ge=0, le=100)] = Field(
        default=0, description="times that a refused client comes again, when it was told to"
    )
    large: AtOnce = Field(default=10, description="pictures of a large request")
    rounds: Rounds = 4
    soak: Span = Field(default=60.0, description="seconds of the soak")
    leaving: Share = Field(
        default=0.3, description="share of the soak's clients that leave before their picture"
    )
    streamed: Share = Field(default=0.5, description="share of the soak's requests that stream")
    threads: Annotated[int, Field(strict=True, gt=0, le=MOST_THREADS)] | None = Field(
        default=None, description="of each server's arithmetic; as many as cores if left out"
    )
    device: str = Field(default="cpu", description="where servers draw: cpu, cuda, ...")
    seed: Seed = Field(default=0, description="of arrivals, prompts and who leaves")
    options: tuple[str, ...] = Field(
        default=(),
        description="settings of our server, as --set of 'cascade serve' takes them; may be "
        "repeated",
    )

    @property
    def threads_or_cores(self) -> int:
        """Threads of each server's arithmetic."""
        return self.threads or cores()
