"""`cascade bench launches`: what a call of an operation takes of the CPU before anything runs.

A GPU waits for it wherever a kernel takes less: at 8x8 and 16x16 pixels, and wherever calls are in
no graph. No GPU is needed: the launches go to one that is not there. Beside ours stands what
PyTorch itself takes for a node of as many inputs and as large an output, which computes nothing.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from cascade.errors import UserError
from cascade.results import Result
from cascade_bench.harness import bench
from cascade_bench.kernels import group_norm_film_silu, joint_attention
from cascade_bench.kernels.problem import OURS, Function, Operation
from cascade_bench.kernels.shapes import stage_of
from cascade_bench.problem import Case, Problem
from cascade_bench.records import Mode
from cascade_bench.settings import LaunchBenchConfig
from cascade_bench.timing import ClockStopwatch, Run

_CALLS: Final = 32  # of a reading: a process's clock ticks in microseconds
_CPU: Final = torch.device("cpu")
_NOTHING: Final = "nothing"
_OPERATIONS: Final = (joint_attention.OPERATION, group_norm_film_silu.OPERATION)


def bench_launches(config: LaunchBenchConfig, output: Path) -> tuple[Result, bool]:
    """Time the launches of every operation at the levels of one network.

    Raises:
        UserError: there is no such network, or Triton would interpret kernels.
    """
    stage_of(config.network)  # or this tells that there is none
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("An interpreter launches nothing; run it again without TRITON_INTERPRET.")
    from cascade_bench.kernels.fake_gpu import take_fake_gpu

    torch.set_num_threads(1)  # a process's clock counts what all of its threads do
    cases = [
        Case(operation.name, shape.name, shape.description, partial(_open, operation, shape))
        for operation in _OPERATIONS
        # Python's time knows no batch, and small outputs are cheap to allocate.
        for shape in (replace(shape, batch=1) for shape in operation.cases())
        if shape.name.startswith(f"{config.network} ")
    ]
    take_fake_gpu()
    return bench("bench launches", cases, output / "launches", config, packages=("triton",))


@dataclass(frozen=True, kw_only=True)
class LaunchProblem(Problem):
    """Calls of one operation, of which nothing but the CPU's part takes place.

    Attributes:
        leaves: the inputs that take gradients.
        gradient: of the output.
    """

    leaves: tuple[Tensor, ...]
    gradient: Tensor

    def gate(self) -> Callable[[Function], float]:
        """Let everybody pass: nothing is computed."""
        return lambda _: 0.0

    def comparable(self, provider: Function) -> bool:
        """Tell that nobody is an alternative: what computes nothing is a measure alone."""
        return False

    def watch(self, run: Run) -> ClockStopwatch:
        """Return what times one of the calls that a run makes."""
        run()
        return _PerCall(run)

    def call(self, function: Function, mode: Mode) -> Run:
        """Return a run of several calls, each on leaves of its own: no gradients are added up."""
        if mode == "forward":
            return partial(_inferences, function, self.leaves)
        leaves = [tuple(x.detach().requires_grad_() for x in self.leaves) for _ in range(_CALLS)]
        wanted = [leaf for own in leaves for leaf in own]
        given = [self.gradient] * _CALLS
        return lambda: torch.autograd.grad([function(*own) for own in leaves], wanted, given)


class _PerCall(ClockStopwatch):
    def cold(self) -> float:
        return super().cold() / _CALLS


class _Nothing(torch.autograd.Function):
    """Allocate the output, save the inputs, allocate their gradients."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(*leaves)
        return torch.empty_like(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(torch.empty_like(leaf) for leaf in ctx.saved_tensors)


def _open(operation: Operation[Any], shape: Any) -> LaunchProblem:
    problem = operation.problem(shape, torch.bfloat16, _CPU)
    assert problem.gradient is not None  # as every operation's that trains
    return LaunchProblem(
        device=_CPU,
        providers={
            OURS: problem.providers[OURS],
            _NOTHING: lambda: partial(_Nothing.apply, problem.gradient),
        },
        ours=OURS,
        baseline=_NOTHING,
        modes=("forward", "both"),
        leaves=problem.leaves,
        gradient=problem.gradient,
    )


def _inferences(function: Function, leaves: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for _ in range(_CALLS):
            function(*leaves)
