"""`cascade bench train`: a call of a network and a whole training step, by every provider."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cascade.config.folders import CONFIGS
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.results import Result
from cascade_bench.harness import bench
from cascade_bench.kernels.shapes import stage_of
from cascade_bench.network_problem import NetworkProblem
from cascade_bench.networks import PROVIDERS, Inputs, known, narrowed, random_weights
from cascade_bench.problem import Case, Problem
from cascade_bench.settings import TrainBenchConfig


def bench_train(config: TrainBenchConfig, output: Path) -> tuple[Result, bool]:
    """Time every network; the record is `train` in `output`."""
    names = known(config.against, PROVIDERS)
    cases = [_case(network, names, config) for network in config.networks]
    return bench("bench train", cases, output / "train", config, packages=("triton", "diffusers"))


def _case(network: str, names: Sequence[str], config: TrainBenchConfig) -> Case:
    if not (CONFIGS / f"{network}.toml").is_file():
        there = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
        raise UserError(f"There is no configuration '{network}'; there are {there}.")
    stage = narrowed(stage_of(network), config.width, config.side)
    told = f"{stage.size}x{stage.size}, {stage.unet.channels[0]} channels, B{config.batch}"
    opening = partial(_problem, stage, names, config)
    return Case("network", network, f"{told}, {config.precision}", opening)


def _problem(stage: StageConfig, names: Sequence[str], config: TrainBenchConfig) -> Problem:
    """Draw weights and inputs."""
    inputs = Inputs.draw(stage, config.batch, torch.device(config.device))
    makers = {name: PROVIDERS[name] for name in names}
    problem = NetworkProblem.of(stage, random_weights(stage.unet), inputs, makers, config.precision)
    baseline = "diffusers" if "diffusers" in names else names[0]
    return replace(problem, modes=("forward", "step"), weighed=True, baseline=baseline)
