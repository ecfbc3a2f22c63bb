"""`cascade bench train`: a call of a network and a whole training step, by every provider."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
    known,
    narrowed,
    random_weights,
)
from cascade_bench.problem import Case, Problem
from cascade_bench.records import Mode
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
    opening = partial(_problem, stage, names, config)
    return Case("network", network, f"{told}, {config.precision}", opening)


def _problem(stage: StageConfig, names: Sequence[str], config: TrainBenchConfig) -> Problem:
    """Draw weights and inputs."""
    device = torch.device(config.device)
    weights = random_weights(stage.unet)
    return StepProblem(
        device=device,
        providers={name: partial(PROVIDERS[name], stage, weights) for name in names},
        ours=names[0],
        baseline="diffusers" if "diffusers" in names else names[0],
        modes=("forward", "step"),
        weighed=True,
        plain=partial(PROVIDERS["eager"], stage, weights),
        inputs=Inputs.draw(stage, config.batch, device),
        half=config.precision == "bf16",
    )


@dataclass(frozen=True, kw_only=True)
class StepProblem(Problem):
    """A network on a batch; `half` is bf16: weights of a call, autocast of a step."""

    plain: Callable[[], Made]
    inputs: Inputs
    half: bool

    def gate(self) -> Callable[[Made], float]:
        """Return the error to float64 over twice that of our eager network in the same type."""
        few = self.inputs.first(1)
        plain = self.plain()
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
        dtype = torch.bfloat16 if self.half else torch.float32
        network = self._prepared(made, dtype).eval()
        given = inputs.to(dtype)
        return torch.no_grad()(lambda: given.call(network))

    def _step(self, made: Made) -> Run:
        """Forward, mean square, backward and AdamW."""
        network = self._prepared(made, torch.float32).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
        target = torch.randn_like(self.inputs.x)

        def run() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                out = self.inputs.call(network)
            F.mse_loss(out[:, :3].float(), target).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run
