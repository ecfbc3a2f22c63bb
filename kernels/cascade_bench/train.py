"""`cascade bench train`: a call of a network and a whole training step, by every provider."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.folders import CONFIGS
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.results import Result
from cascade_bench.harness import bench
from cascade_bench.kernels.shapes import stage_of
from cascade_bench.networks import (
    PROVIDERS,
    Inputs,
    Made,
    Weights,
    known,
    narrowed,
    random_weights,
)
from cascade_bench.problem import Case
from cascade_bench.records import Mode, Work
from cascade_bench.settings import TrainBenchConfig
from cascade_bench.timing import Run


def bench_train(config: TrainBenchConfig, output: Path) -> tuple[Result, bool]:
    """Time every network; the record is `train` in `output`.

    Raises:
        UserError: a network or a provider is unknown.
    """
    names = known(config.against, PROVIDERS)
    cases = [_case(network, names, config) for network in config.networks]
    return bench("bench train", cases, output / "train", config, packages=("triton", "diffusers"))


def _case(network: str, names: Sequence[str], config: TrainBenchConfig) -> Case:
    if not (CONFIGS / f"{network}.toml").is_file():
        there = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
        raise UserError(f"There is no configuration '{network}'; there are {there}.")
    stage = narrowed(stage_of(network), config.width, config.side)
    told = f"{stage.size}x{stage.size}, {stage.unet.channels[0]} channels, B{config.batch}"
    opening = partial(open_problem, stage, names, config)
    return Case("network", network, f"{told}, {config.precision}", opening)


def open_problem(
    stage: StageConfig, names: Sequence[str], config: TrainBenchConfig
) -> "StepProblem":
    """Draw weights and inputs."""
    device = torch.device(config.device)
    weights = random_weights(stage.unet)
    return StepProblem(
        stage=stage,
        weights=weights,
        inputs=Inputs.draw(stage, config.batch, device),
        precision=config.precision,
        providers={name: partial(PROVIDERS[name], stage, weights) for name in names},
        ours=names[0],
        baseline="diffusers" if "diffusers" in names else names[0],
    )


@dataclass(frozen=True)
class StepProblem:
    """A network on a batch; see `cascade_bench.problem.Problem`."""

    stage: StageConfig
    weights: Weights
    inputs: Inputs
    precision: Literal["fp32", "bf16"]
    providers: Mapping[str, Callable[[], Made]]
    ours: str
    baseline: str
    modes: tuple[Mode, ...] = ("forward", "step")
    work: Mapping[Mode, Work] = field(default_factory=dict)
    weighed: bool = True
    graphs: bool = False  # what a step costs beside its kernels is part of it

    @property
    def device(self) -> torch.device:
        """Where the batch lies."""
        return self.inputs.x.device

    def gate(self) -> Callable[[Made], float]:
        """Return the error to float64 over twice that of our eager network in the same type."""
        few = self.inputs.first(1)
        plain = PROVIDERS["eager"](self.stage, self.weights)
        with torch.no_grad():
            exact = few.to(torch.float64).call(
                copy.deepcopy(plain.network).double().to(few.x.device)
            )

        def error(made: Made) -> float:
            out = self._call(made, few)()
            return float((out.double() - exact).norm() / exact.norm())

        # Two sums of the same numbers differ by a few roundings whatever the plain one happens to.
        limit = 2 * error(plain) + 4 * torch.finfo(torch.float32).eps
        return lambda made: error(made) / limit

    def call(self, made: Made, mode: Mode) -> Run:
        """Return a call without gradients, or a whole step."""
        return self._call(made, self.inputs) if mode == "forward" else self._step(made)

    def _prepared(self, made: Made, dtype: torch.dtype) -> nn.Module:
        network = copy.deepcopy(made.network).to(self.device, dtype)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if made.compiled:
            network.compile(dynamic=False)
        return network

    def _call(self, made: Made, inputs: Inputs) -> Callable[[], Tensor]:
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        network = self._prepared(made, dtype).eval()
        given = inputs.to(dtype)
        return torch.no_grad()(lambda: given.call(network))

    def _step(self, made: Made) -> Run:
        """Forward, mean square, backward and AdamW."""
        network = self._prepared(made, torch.float32).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
        target = torch.randn_like(self.inputs.x)
        half = self.precision == "bf16"

        def run() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                out = self.inputs.call(network)
            F.mse_loss(out[:, :3].float(), target).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run
