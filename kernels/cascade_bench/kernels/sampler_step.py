"""`sampler_step` against the chain a person would write, with each way to find the percentile.

Shapes: `B` batch, `C H W` image; the network's output has 2 B rows under guidance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cascade.config.stage import ThresholdConfig
from cascade_bench.kernels.problem import (
    OURS,
    REFERENCE,
    Function,
    KernelProblem,
    Operation,
    Space,
    compiled,
)
from cascade_bench.records import Mode, Work
from cascade_kernels.names import Backend
from cascade_kernels.sampler_step import Prediction, Update, rank_of, sampler_step

PREDICTION = Prediction(from_x=1.25, from_out=-0.75, guidance=7.0)
THRESHOLD = ThresholdConfig(kind="dynamic", percentile=0.995)
# A step from the middle of a schedule; the values of the coefficients cost nothing.
UPDATES = {
    "ddim": Update(keep=0.8, pull=0.2),
    "dpmpp_2m": Update(keep=0.8, pull=0.3, recall=-0.1),
    "ancestral": Update(keep=0.8, pull=0.2, log_variance=(-4.0, -2.0)),
}
# Up to this many values one program holds an image and reads it once.
ONE_PROGRAM = 16384

Quantile = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One shape; "ancestral" has a learned variance."""

    name: str
    batch: int
    side: int
    update: Literal["ddim", "dpmpp_2m", "ancestral"] = "ddim"

    @property
    def description(self) -> str:
        """The sizes, for tables."""
        return f"B{self.batch} 3x{self.side}x{self.side}, {self.update}"


def cases() -> tuple[Case, ...]:
    """List the images of every stage; at 1024 pixels one, a batch, and the other samplers."""
    return (
        Case("ddim 64", 8, 64),
        Case("ddim 256", 8, 256),
        Case("ddim 1024", 1, 1024),
        Case("ddim 1024 batch", 8, 1024),
        Case("dpmpp_2m 1024", 1, 1024, "dpmpp_2m"),
        Case("ancestral 64", 8, 64, "ancestral"),
        Case("ancestral 1024", 1, 1024, "ancestral"),
    )


def dry_cases() -> tuple[Case, ...]:
    """Shapes small enough for an interpreter."""
    return (Case("tiny ddim", 2, 8), Case("tiny ancestral", 2, 8, "ancestral"))


def problem(case: Case, dtype: torch.dtype, device: torch.device) -> KernelProblem:
    """Draw a case's inputs: a float32 image, and the output of a network in `dtype`."""
    leaves = _leaves(case, dtype, device)
    providers: dict[str, Callable[[], Function]] = {
        OURS: lambda: _fused(case, "triton"),
        "kthvalue": lambda: lambda *given: _chain(case, given, _by_kthvalue),
        "topk": lambda: lambda *given: _chain(case, given, _by_topk),
        "quantile": lambda: lambda *given: _chain(case, given, _by_quantile),
        "reference compiled": lambda: compiled(_fused(case, "reference"), device),
        REFERENCE: lambda: _fused(case, "reference"),
    }
    return KernelProblem.of(
        leaves=leaves,
        gradient=None,
        plain=lambda *given: _chain(case, given, _by_kthvalue),
        providers=providers,
        work=_work(leaves),
    )


def _leaves(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    shape = (case.batch, 3, case.side, case.side)
    x = torch.randn(shape, device=device)
    channels = 6 if case.update == "ancestral" else 3
    out = torch.randn(2 * case.batch, channels, *shape[2:], dtype=dtype, device=device)
    out = out.contiguous(memory_format=torch.channels_last)
    more = () if case.update == "ddim" else (torch.randn_like(x),)
    return (x, out, *more)


def _fused(case: Case, backend: Backend) -> Function:
    update = UPDATES[case.update]

    def step(x: Tensor, out: Tensor, more: Tensor | None = None) -> tuple[Tensor, Tensor]:
        previous, noise = (more, None) if update.recall != 0 else (None, more)
        return sampler_step(x, out, PREDICTION, THRESHOLD, update, previous, noise, backend=backend)

    return step


def _chain(case: Case, given: tuple[Tensor, ...], quantile: Quantile) -> tuple[Tensor, Tensor]:
    x, out, *more = given
    update = UPDATES[case.update]
    text, null = out.to(x.dtype).chunk(2)
    eps = null[:, :3] + PREDICTION.guidance * (text[:, :3] - null[:, :3])
    x0 = PREDICTION.from_x * x + PREDICTION.from_out * eps
    s = quantile(x0.abs().flatten(1)).clamp(min=1).view(-1, 1, 1, 1)
    x0 = x0.clamp(-s, s) / s
    x_next = update.keep * x + update.pull * x0
    if update.recall != 0:
        x_next = x_next + update.recall * more[0]
    if update.log_variance is not None:
        small, large = update.log_variance
        fraction = (text[:, 3:] + 1) / 2
        x_next = x_next + ((small + fraction * (large - small)) / 2).exp() * more[0]
    return x_next, x0


def _by_quantile(values: Tensor) -> Tensor:
    return torch.quantile(values, THRESHOLD.percentile, dim=1)


def _by_kthvalue(values: Tensor) -> Tensor:
    low, weight = rank_of(THRESHOLD.percentile, values.shape[1])
    below, above = (values.kthvalue(low + k, dim=1).values for k in (1, 2))
    return torch.lerp(below, above, weight)


def _by_topk(values: Tensor) -> Tensor:
    """Sort only the values above the percentile, one in two hundred."""
    low, weight = rank_of(THRESHOLD.percentile, values.shape[1])
    top = values.topk(values.shape[1] - low, dim=1).values
    return torch.lerp(top[:, -1], top[:, -2], weight)


def _work(leaves: tuple[Tensor, ...]) -> dict[Mode, Work]:
    """Count every input once, but for the unconditional branch's variance, and two images."""
    x, out, *more = leaves
    image = x.numel() * x.element_size()
    read = image + (out.numel() - (out.shape[1] - 3) * out[:, 0].numel() // 2) * out.element_size()
    return {"forward": Work(bytes=read + (2 + len(more)) * image, flops=0)}


def _limits(case: Case, _: torch.dtype) -> dict[str, int]:
    return {"values": 3 * case.side**2}


def _large(blocks: tuple[int, ...]) -> Space:
    return Space(
        "forward",
        ("values",),
        {"BLOCK": blocks},
        used=lambda shape: shape["values"] > ONE_PROGRAM,
    )


SPACES = {
    "sampler_step_whole": Space(
        "forward",
        ("values",),
        {"CHUNK": (1024, 2048, 4096)},
        num_warps=(4, 8, 16),
        used=lambda shape: shape["values"] <= ONE_PROGRAM,
    ),
    "sampler_step_predict": _large((1024, 2048, 4096)),
    "sampler_step_digit": _large((1024, 2048, 4096, 8192)),
    "sampler_step_pointwise": _large((512, 1024, 2048)),
}
OPERATION = Operation("sampler_step", cases, dry_cases, problem, _limits, SPACES)
