"""A stage's network on one batch, by every provider."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.stage import StageConfig
from cascade_bench.networks import PROVIDERS, Inputs, Made, Maker, Weights
from cascade_bench.problem import Problem
from cascade_bench.records import Mode
from cascade_bench.timing import Run

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class NetworkProblem(Problem):
    """A network on a batch, in a type: of the weights of a call, of a step's autocast."""

    plain: Callable[[], Made]  # in float64 it is what is right
    inputs: Inputs
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        stage: StageConfig,
        weights: Weights,
        inputs: Inputs,
        makers: Mapping[str, Maker],
        precision: str,
    ) -> Self:
        """Make a problem of a stage's network, timed by calls without gradients."""
        providers = {name: partial(make, stage, weights) for name, make in makers.items()}
        ours = next(iter(makers))
        return cls(
            device=inputs.x.device,
            providers=providers,
            ours=ours,
            baseline="eager" if "eager" in makers else ours,
            plain=partial(PROVIDERS["eager"], stage, weights),
            inputs=inputs,
            dtype=DTYPES[precision],
        )

    def gate(self) -> Callable[[Made], float]:
        """Return the error to float64 over twice that of our eager network in the same type.

        What its own export has proven in eight bits, which has no twin to be measured by, passes.
        """
        few = self.inputs.first(1)
        plain = self.plain()
        with torch.no_grad():
            exact = few.to(torch.float64).call(self._prepared(plain, torch.float64).eval())

        def error(made: Made) -> float:
            out = self._call(made, few)()
            return float((out.double() - exact).norm() / exact.norm())

        # Two sums of the same numbers differ by a few roundings whatever the plain one happens to.
        limit = 2 * error(plain) + 4 * torch.finfo(torch.float32).eps
        return lambda made: 0.0 if made.proven else error(made) / limit

    def call(self, made: Made, mode: Mode) -> Run:
        """Return a call without gradients, or a whole step."""
        return self._call(made, self.inputs) if mode == "forward" else self._step(made)

    def _prepared(self, made: Made, dtype: torch.dtype) -> nn.Module:
        assert isinstance(made.network, nn.Module)  # no engine is trained
        network = copy.deepcopy(made.network).to(self.device, dtype)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if made.compiled:
            network.compile(dynamic=False)
        return network

    def _call(self, made: Made, inputs: Inputs) -> Callable[[], Tensor]:
        if not isinstance(made.network, nn.Module):  # an engine takes and gives float32
            return torch.inference_mode()(lambda: inputs.call(made.network))
        network = self._prepared(made, self.dtype).eval()
        given = inputs.to(self.dtype)
        return torch.inference_mode()(lambda: given.call(network))

    def _step(self, made: Made) -> Run:
        """Forward, mean square, backward and AdamW."""
        network = self._prepared(made, torch.float32).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)
        target, half = torch.randn_like(self.inputs.x), self.dtype != torch.float32

        def run() -> None:
            with torch.autocast(self.device.type, self.dtype, enabled=half):
                out = self.inputs.call(network)
            F.mse_loss(out[:, :3].float(), target).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run
