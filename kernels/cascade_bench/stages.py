"""`cascade bench stages`: calls of a bundle's stages, and the first picture of a fresh process."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

from cascade.config.engine import EngineOptions
from cascade.config.stage import StageConfig
from cascade.environment import usable_device
from cascade.errors import UserError
from cascade.results import Result
from cascade.tables import Table
from cascade_bench.cold_start import ENGINE
from cascade_bench.harness import bench
from cascade_bench.network_problem import NetworkProblem
from cascade_bench.networks import Inputs, Made, Weights
from cascade_bench.problem import Case, Problem
from cascade_bench.providers import PROVIDERS, known
from cascade_bench.settings import StageBenchConfig
from cascade_export.bundle.bundle import Bundle
from cascade_export.engines import engine_class

AGAINST: Final = {name: PROVIDERS[name] for name in ("eager", "compiled", "diffusers")}
"""What an engine is compared with, and held to."""


def bench_stages(
    bundle: Bundle, config: StageBenchConfig, output: Path
) -> tuple[Result, bool, list[Table]]:
    """Time a bundle's stages into `stages` of a folder; return a table of cold starts as well."""
    names = known(config.against, AGAINST)
    engine_class(bundle.manifest.engine).check_options(config.engines)
    device = torch.device(usable_device(config.device))
    cases = [
        _case(bundle, place, batch, names, device, config.engines)
        for place in range(len(bundle.files()))
        for batch in config.batches
    ]
    packages = ("onnxruntime", "openvino", "tensorrt", "diffusers")
    result, whole = bench("bench stages", cases, output / "stages", config, packages=packages)
    if not whole or not config.first_picture:
        return result, whole, []
    drawn = [ENGINE, *(name for name in names if name != "diffusers")]
    first = {name: first_picture(bundle.folder, name, config) for name in drawn}
    result = result.model_copy(update={"figures": {**result.figures, "first pictures": first}})
    head = ["first picture of a fresh process", "seconds", "peak memory, MiB"]
    table = Table(head, [[name, of["seconds"], of["peak"]] for name, of in first.items()])
    result.write(output / "stages", [table])
    return result, whole, [table]


def _case(
    bundle: Bundle,
    place: int,
    batch: int,
    names: Sequence[str],
    device: torch.device,
    options: EngineOptions,
) -> Case:
    part, manifest = bundle.files()[place], bundle.manifest

    def engine(config: StageConfig, weights: Weights) -> Made:
        """Return the bundle's own."""
        network = bundle.stages(device=str(device), options=options)[place].denoiser.network
        return Made(network, comparable=manifest.quantisation == "none")

    def opened() -> Problem:
        rows = batch * (1 if part.config.sampler.guidance == 1 else 2)
        inputs = Inputs.draw(part.config, rows, device)
        makers = {ENGINE: engine} | {name: AGAINST[name] for name in names}
        weights = load_file(part.weights)
        return NetworkProblem.of(part.config, weights, inputs, makers, part.precision)

    told = f"{batch} pictures, {manifest.engine} {manifest.precision}"
    return Case(part.config.name, f"{part.config.name} {batch}", told, opened)


def first_picture(folder: Path, name: str, config: StageBenchConfig) -> dict[str, float | None]:
    """Time a process that draws one picture; tell its seconds and its most memory, MiB."""
    command = [sys.executable, "-m", "cascade_bench.cold_start", str(folder), name]
    command += [config.device, str(config.steps or 0), config.engines.model_dump_json()]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # asked for above
        line = process.stdout.readline()
        seconds = time.monotonic() - start
    if process.returncode != 0:
        raise UserError(f"The {name} could not draw a picture; its error is above.")
    return {"seconds": seconds, **json.loads(line)}
