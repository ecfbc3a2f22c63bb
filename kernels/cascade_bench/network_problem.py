"""A stage's network on one batch, by every provider."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cascade.config.stage import StageConfig
from cascade.model.layers import set_backend
from cascade.model.unet import UNet
from cascade_bench.networks import Inputs, Made, Maker, Training, Weights
from cascade_bench.ours import ours
from cascade_bench.problem import Problem
from cascade_bench.records import Mode
from cascade_bench.timing import Run

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class NetworkProblem(Problem):
    """A network on a batch, in a type: of the weights of a call, of a step's autocast.

    Attributes:
        plain: makes our eager one, which in float64 is what is right.
        training: of a step, where one is timed.
    """

    plain: Callable[[], Made]
    inputs: Inputs
    dtype: torch.dtype
    training: Training | None = None

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
        first = next(iter(makers))
        return cls(
            device=inputs.x.device,
            providers=providers,
            ours=first,
            baseline="eager" if "eager" in makers else first,
            plain=partial(ours, stage, weights),
            inputs=inputs,
            dtype=DTYPES[precision],
        )

    def gate(self) -> Callable[[Made], float]:
        """Return the error to float64 over twice that of our eager network in the same type.

        What has no twin to be measured by passes.
        """
        few = self.inputs.first(1)
        plain = self.plain()
        with torch.no_grad():
            exact = few.to(torch.float64).call(self._prepared(plain, torch.float64).eval())

        def error(made: Made) -> float:
            if "forward" not in self.modes:
                made = replace(made, compiled=None)  # a step compiles something else
            # Of the batch that is timed: a compiled one would be compiled for another as well.
            out = self._call(made, self.inputs)()[:1]
            return float((out.double() - exact).norm() / exact.norm())

        # Two sums of the same numbers differ by a few roundings whatever the plain one happens to.
        limit = 2 * error(plain) + 4 * torch.finfo(torch.float32).eps
        return lambda made: error(made) / limit if made.comparable else 0.0

    def call(self, made: Made, mode: Mode) -> Run:
        """Return a call without gradients, or a whole step."""
        if mode == "forward":
            return self._call(made, self.inputs)
        assert made.step is not None, "an engine is not trained"
        assert self.training is not None, "a step is timed where there is one"
        return made.step(made, self.training)

    def comparable(self, made: Made) -> bool:
        """Tell whether a network answers as ours does."""
        return made.comparable

    def flops(self, made: Made, mode: Mode) -> int | None:
        """Count one picture's operations, times the pictures; of a step as a run's plan does."""
        if not self.images or not isinstance(made.network, nn.Module):
            return None
        row = self.inputs.first(1).on(torch.device("cpu"))
        # PyTorch does not count what its fused attention for CPUs does.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = row.call(made.network)
            if mode == "step":
                out.sum().backward()
        made.network.zero_grad()
        return int(counter.get_total_flops()) * self.images

    def _prepared(self, made: Made, dtype: torch.dtype) -> nn.Module:
        assert isinstance(made.network, nn.Module)  # no engine is trained
        network = copy.deepcopy(made.network).to(self.device, dtype)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(network, UNet):
            set_backend(network, made.backend)
        if made.compiled is not None:
            network.compile(dynamic=False, mode=made.compiled)
        return network

    def _call(self, made: Made, inputs: Inputs) -> Callable[[], Tensor]:
        if not isinstance(made.network, nn.Module):  # an engine takes and gives float32
            return torch.inference_mode()(lambda: inputs.call(made.network))
        network = self._prepared(made, self.dtype).eval()
        given = inputs.to(self.dtype)
        return torch.inference_mode()(lambda: given.call(network))
