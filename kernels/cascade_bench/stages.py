"""`cascade bench stages`: calls of a bundle's stages, and the first picture of a fresh process."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade.config.stage import StageConfig
from cascade.diffusion.denoiser import Network
from cascade.errors import UserError
from cascade.model.unet import UNet
from cascade.results import Result
from cascade.tables import Table
from cascade_bench.cold_start import ENGINE, engine_of
from cascade_bench.harness import bench
from cascade_bench.networks import DiffusersNetwork, Inputs, known
from cascade_bench.problem import Case, Problem
from cascade_bench.records import Mode
from cascade_bench.settings import StageBenchConfig
from cascade_bench.timing import Run
from cascade_export.bundle.bundle import Bundle
from cascade_export.graph.precision import DTYPES

Maker: TypeAlias = Callable[[Bundle, int, str], Network]
"""Gives the network of a bundle's stage, by its place, on a device."""


def engine(bundle: Bundle, place: int, device: str) -> Network:
    """The bundle's own engine."""
    return _of_engine(ENGINE, bundle, place, device)


def eager(bundle: Bundle, place: int, device: str) -> Network:
    """PyTorch's network with the bundle's weights."""
    return _of_engine("eager", bundle, place, device)


def compiled(bundle: Bundle, place: int, device: str) -> Network:
    """The same, compiled."""
    return _of_engine("compiled", bundle, place, device)


def diffusers(bundle: Bundle, place: int, device: str) -> Network:
    """Diffusers' network with these weights, in the bundle's precision."""
    part = bundle.files()[place]
    dtype = DTYPES[part.precision]
    network = DiffusersNetwork(part.config, load_file(part.weights)).to(device, dtype).eval()

    @torch.inference_mode()
    def call(
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        given = Inputs(x, t, text, text_mask, low_res, aug).to(dtype)
        return given.call(network).float()

    return call


PROVIDERS: Final[Mapping[str, Maker]] = {
    ENGINE: engine,
    "eager": eager,
    "compiled": compiled,
    "diffusers": diffusers,
}


def bench_stages(
    bundle: Bundle, config: StageBenchConfig, output: Path
) -> tuple[Result, bool, list[Table]]:
    """Time a bundle's stages into `stages` of a folder; return a table of first pictures as well.

    Raises:
        UserError: a provider is unknown or cannot run here.
    """
    names = [ENGINE, *known(config.against, PROVIDERS)] if config.against else [ENGINE]
    cases = [
        _case(bundle, place, part.config, batch, names, config.device)
        for place, part in enumerate(bundle.files())
        for batch in config.batches
    ]
    packages = ("onnxruntime", "openvino", "tensorrt", "diffusers")
    result, whole = bench("bench stages", cases, output / "stages", config, packages=packages)
    if not whole or not config.first_picture:
        return result, whole, []
    drawn = [name for name in names if name != "diffusers"]
    first = {name: first_picture(bundle.folder, name, config) for name in drawn}
    result = result.model_copy(update={"figures": {**result.figures, "first pictures": first}})
    head = ["first picture of a fresh process", "seconds", "peak memory, MiB"]
    table = Table(head, [[name, of["seconds"], of["peak"]] for name, of in first.items()])
    result.write(output / "stages", [table])
    return result, whole, [table]


def _case(
    bundle: Bundle,
    place: int,
    stage: StageConfig,
    batch: int,
    names: Sequence[str],
    device: str,
) -> Case:
    def opened() -> CallProblem:
        rows = batch * (1 if stage.sampler.guidance == 1 else 2)
        return CallProblem(
            device=torch.device(device),
            providers={name: partial(PROVIDERS[name], bundle, place, device) for name in names},
            ours=ENGINE,
            baseline="eager" if "eager" in names else ENGINE,
            inputs=Inputs.draw(stage, rows, torch.device(device)),
            plain=partial(eager, bundle, place, device),
            exact=partial(_exact, bundle, place),
            eight_bits=bundle.manifest.quantisation != "none",
        )

    told = f"{batch} pictures, {bundle.manifest.engine} {bundle.manifest.precision}"
    return Case(stage.name, f"{stage.name} {batch}", told, opened)


@dataclass(frozen=True, kw_only=True)
class CallProblem(Problem):
    """A stage's network on a batch: PyTorch's in this precision, and the one in float64."""

    inputs: Inputs
    plain: Callable[[], Network]
    exact: Callable[[], nn.Module]
    eight_bits: bool

    def gate(self) -> Callable[[Network], float]:
        """Return the error to float64 over twice that of PyTorch's network in this precision.

        Eight bits have no twin to be measured by: their engine has passed its export's own gate.
        """
        few = self.inputs.first(1)
        exact = few.to(torch.float64).call(self.exact().to(self.device))

        def error(network: Network) -> float:
            return float((few.call(network).double() - exact).norm() / exact.norm())

        limit = 2 * error(self.plain()) + 4 * torch.finfo(torch.float32).eps
        return lambda network: 0.0 if self.eight_bits else error(network) / limit

    def call(self, network: Network, mode: Mode) -> Run:
        """Return one call."""
        return lambda: self.inputs.call(network)


def _exact(bundle: Bundle, place: int) -> nn.Module:
    """The network in float64."""
    part = bundle.files()[place]
    network = UNet(part.config.unet).double()
    network.load_state_dict(load_file(part.weights))
    return network.eval().requires_grad_(False)


def _of_engine(name: str, bundle: Bundle, place: int, device: str) -> Network:
    kind, options = engine_of(name)
    stages = bundle.stages(device=device, engine=kind, options=options)
    return stages[place].denoiser.network


def first_picture(folder: Path, name: str, config: StageBenchConfig) -> dict[str, float | None]:
    """Time a process that draws one picture; tell its seconds and its most memory, MiB.

    Raises:
        UserError: it failed.
    """
    command = [sys.executable, "-m", "cascade_bench.cold_start", str(folder), name]
    command += [config.device, str(config.steps or 0)]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # asked for above
        line = process.stdout.readline()
        seconds = time.monotonic() - start
    if process.returncode != 0:
        raise UserError(f"The {name} could not draw a picture; its error is above.")
    return {"seconds": seconds, **json.loads(line)}
