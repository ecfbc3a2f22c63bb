"""`cascade bench train`: a call of a network and a step of its training, by every provider."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from cascade.config.optimizer import OptimizerConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.batch import crop_sides
from cascade.results import Result
from cascade_bench.harness import bench
from cascade_bench.kernels.shapes import stage_of
from cascade_bench.network_problem import NetworkProblem
from cascade_bench.networks import Inputs, Training, narrowed, random_weights
from cascade_bench.problem import Case, Problem
from cascade_bench.providers import PROVIDERS, known
from cascade_bench.settings import TrainBenchConfig

PACKAGES: Final = ("triton", "diffusers", "imagen-pytorch", "accelerate")


def bench_train(config: TrainBenchConfig, output: Path) -> tuple[Result, bool]:
    """Time every network; the record is `train` in `output`."""
    names = known(config.against, PROVIDERS)
    cases = [_case(network, names, config) for network in config.networks]
    return bench("bench train", cases, output / "train", config, packages=PACKAGES)


def _case(network: str, names: Sequence[str], config: TrainBenchConfig) -> Case:
    stage = narrowed(stage_of(network), config.width, config.side)
    told = f"{stage.size}x{stage.size}, {stage.unet.channels[0]} channels, B{config.batch}"
    opening = partial(_problem, stage, names, config)
    return Case("network", network, f"{told}, {config.precision}", opening)


def _problem(stage: StageConfig, names: Sequence[str], config: TrainBenchConfig) -> Problem:
    """Draw weights, and pictures of the size that the stage is trained on."""
    inputs = Inputs.draw(stage, config.batch, torch.device(config.device), crop_sides(stage)[0])
    makers = {name: PROVIDERS[name] for name in names}
    problem = NetworkProblem.of(stage, random_weights(stage.unet), inputs, makers, config.precision)
    baseline = "diffusers" if "diffusers" in names else names[0]
    run = TrainConfig(
        steps=10**6,
        batch_size=config.batch,
        precision=config.precision,
        optimizer=OptimizerConfig(learning_rate=1e-6),  # what is timed is to stay as it is
        gradient_checkpointing=config.gradient_checkpointing,
        noise="cpu" if inputs.x.device.type == "cpu" else "device",
    )
    training = Training(stage, run, inputs)
    return replace(
        problem,
        modes=config.modes,
        weighed=True,
        images=config.batch,
        baseline=baseline,
        training=training,
    )
