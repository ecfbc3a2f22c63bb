"""How long a bundle's stages take, beside eager, compiled and diffusers' networks in the same run.

All providers of a stage are timed in turn, round after round, so that none has the quieter machine.
The first picture is timed from the start of a fresh process.

Shapes: `B` rows of a call, two for each picture where guidance is on.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field

from cascade.config.base import MOST_AT_ONCE, AtOnce, Count, Frozen, Rows
from cascade.config.stage import StageConfig
from cascade.diffusion.denoiser import Network
from cascade.environment import environment
from cascade.errors import UserError
from cascade.text.t5 import TextEmbedding
from cascade_export.bench.cold_start import ENGINE, engine_of
from cascade_export.bench.peer import DiffusersNetwork
from cascade_export.bundle.bundle import Bundle
from cascade_export.graph.probe import Case, draw_case

Against = Literal["eager", "compiled", "diffusers"]
_WARM_UPS = 2

OnPart = Callable[[str, int, int], None]
"""Called with (what is timed, parts done, of how many)."""


class BenchSettings(Frozen):
    """What is timed.

    Attributes:
        batches: pictures at a time.
        against: what the engines are compared with.
        rounds: turns of each provider.
        repeats: calls in each turn.
        steps: of each stage's sampler for the first picture; the checkpoint's by default.
        device: where everything runs.
        first_picture: whether to time that too.
    """

    batches: Annotated[tuple[AtOnce, ...], Field(min_length=1)] = (1, 2, 4)
    against: tuple[Against, ...] = ("eager", "compiled")
    rounds: Annotated[Count, Field(ge=2)] = 5
    repeats: Rows = 4
    steps: Annotated[int | None, Field(strict=True, gt=0, le=1000)] = None
    device: str = "cpu"
    first_picture: bool = True

    @classmethod
    def of_lists(
        cls, batches: str, against: str, rounds: int, steps: int | None, device: str
    ) -> "BenchSettings":
        """Read the command's lists, such as `1,2,4` and `eager,compiled`.

        Raises:
            UserError: a list holds something else.
        """
        numbers = [part.strip() for part in batches.split(",")]
        if not all(
            re.fullmatch("[0-9]{1,4}", part) and 0 < int(part) <= MOST_AT_ONCE for part in numbers
        ):
            raise UserError(
                f"--batch {batches[:60]} is no list of numbers from 1 to {MOST_AT_ONCE}; write it "
                "as in 1,2,4."
            )
        names = [part.strip() for part in against.split(",") if part.strip()]
        known = get_args(Against)
        chosen = tuple(name for name in known if name in names)
        if len(chosen) < len(names):
            raise UserError(f"--against {against} is no list of {', '.join(known)}; mend it.")
        return cls(
            batches=tuple(map(int, numbers)),
            against=chosen,
            rounds=rounds,
            steps=steps,
            device=device,
        )


class Latency(Frozen):
    """One provider of one stage at one batch: milliseconds of a call, and steps a second.

    Attributes:
        batch: pictures; the network sees two rows of each with guidance.
        throughput: network steps of single pictures in a second, at the median.
    """

    stage: str
    provider: str
    batch: int
    p50: float
    p95: float
    throughput: float
    calls: int


class FirstPicture(Frozen):
    """A fresh process: seconds until it has drawn, and the most memory it took."""

    provider: str
    seconds: float
    peak_mebibytes: float | None
    device_mebibytes: float | None = None


class StageBench(Frozen):
    """Everything that was timed, and where."""

    cascade: str
    engine: str
    precision: str
    environment: dict[str, str]
    load_average: tuple[float, float]  # of the last minute, before and after
    settings: dict[str, str]
    latencies: tuple[Latency, ...]
    first_pictures: tuple[FirstPicture, ...]


def bench_stages(
    bundle: Bundle, settings: BenchSettings, on_part: OnPart | None = None
) -> StageBench:
    """Time a bundle's stages.

    Raises:
        UserError: a provider cannot run here.
    """
    before = os.getloadavg()[0]
    files = bundle.files()
    providers = [ENGINE, *settings.against]
    # Opened first: what cannot run is refused before anything is timed.
    networks = {name: _networks(bundle, name, settings.device) for name in providers}
    latencies: list[Latency] = []
    total = len(files) * len(settings.batches)
    for index, part in enumerate(files):
        for number, batch in enumerate(settings.batches):
            mine = {name: networks[name][index] for name in providers}
            latencies += _time(part.config, mine, batch, settings)
            if on_part is not None:
                done = index * len(settings.batches) + number + 1
                on_part("calls of the stages", done, total)
    first: list[FirstPicture] = []
    ours = [name for name in providers if name != "diffusers"] if settings.first_picture else []
    for name in ours:
        first.append(time_first_picture(bundle.folder, name, settings))
        if on_part is not None:
            on_part("first pictures", len(first), len(ours))
    manifest = bundle.manifest
    return StageBench(
        cascade=manifest.cascade.name,
        engine=manifest.engine,
        precision=manifest.precision,
        environment=environment() | _versions(settings.against),
        load_average=(before, os.getloadavg()[0]),
        settings={
            "rounds": str(settings.rounds),
            "calls a round": str(settings.repeats),
            "device": settings.device,
            "steps of a first picture": str(settings.steps or "the checkpoint's"),
        },
        latencies=tuple(latencies),
        first_pictures=tuple(first),
    )


def time_first_picture(folder: Path, provider: str, settings: BenchSettings) -> FirstPicture:
    """Start a process that draws one picture, and wait for it.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", "cascade_export.bench.cold_start", str(folder), provider]
    command += [settings.device, str(settings.steps or 0)]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # asked for above
        line = process.stdout.readline()
        seconds = time.monotonic() - start
    if process.returncode != 0:
        raise UserError(f"The {provider} could not draw a picture; its error is above.")
    told = json.loads(line)
    return FirstPicture(
        provider=provider,
        seconds=seconds,
        peak_mebibytes=told["peak"],
        device_mebibytes=told["device"],
    )


def _networks(bundle: Bundle, provider: str, device: str) -> list[Network]:
    if provider == "diffusers":
        place = torch.device(device)
        return [
            DiffusersNetwork(part.config, part.weights, part.precision, place)
            for part in bundle.files()
        ]
    kind, options = engine_of(provider)
    stages = bundle.stages(device=device, engine=kind, options=options)
    return [stage.denoiser.network for stage in stages]


def _time(
    config: StageConfig, networks: Mapping[str, Network], batch: int, settings: BenchSettings
) -> list[Latency]:
    case = _call(config, batch * (1 if config.sampler.guidance == 1 else 2)).to(settings.device)
    for network in networks.values():
        for _ in range(_WARM_UPS):
            _milliseconds(case, network)
    samples: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(settings.rounds):
        for name, network in networks.items():
            samples[name] += [_milliseconds(case, network) for _ in range(settings.repeats)]
    return [_latency(config.name, name, batch, times) for name, times in samples.items()]


def _call(config: StageConfig, rows: int) -> Case:
    """A call with texts of full length, as engines pad them."""
    generator = torch.Generator().manual_seed(0)
    length = config.text.max_length
    embedding = torch.randn(rows, length, config.unet.text_width, generator=generator)
    text = TextEmbedding(embedding, torch.ones(rows, length, dtype=torch.bool))
    return draw_case("timed", config, text, (config.size, config.size), generator)


def _milliseconds(case: Case, network: Network) -> float:
    start = time.perf_counter()
    case.call(network)
    if case.x.is_cuda:
        torch.cuda.synchronize(case.x.device)
    return 1000 * (time.perf_counter() - start)


def _latency(stage: str, provider: str, batch: int, times: Sequence[float]) -> Latency:
    middle = statistics.median(times)
    return Latency(
        stage=stage,
        provider=provider,
        batch=batch,
        p50=middle,
        p95=statistics.quantiles(times, n=20, method="inclusive")[-1],
        throughput=1000 * batch / middle,
        calls=len(times),
    )


def _versions(against: Sequence[Against]) -> dict[str, str]:
    packages = ["onnxruntime", *(["diffusers"] if "diffusers" in against else [])]
    return {package: version(package) for package in packages}
