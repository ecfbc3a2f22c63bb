"""An operation on one shape: its inputs, who can compute it, and what is right.

A provider is a function of the inputs that take gradients ("leaves"); everything else that it needs
(lengths, masks, groups) is bound to it beforehand and costs no time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from cascade_bench.problem import CannotError, Problem
from cascade_bench.records import Mode, Work
from cascade_bench.timing import Run

Function: TypeAlias = Callable[..., Any]
"""Of the leaves, returning a tensor, or several where there is no backward pass."""

OURS: Final = "triton"
REFERENCE: Final = "reference"
_VARIANT: Final = f"{OURS} + "


def variant(path: str) -> str:
    """Name the provider that is ours with its backward pass on a path."""
    return _VARIANT + path


def path_of(provider: str) -> str:
    """Return the path of the backward pass that a provider of ours is named after."""
    return provider.removeprefix(_VARIANT) if provider.startswith(_VARIANT) else "own"


class Shape(Protocol):
    """One case of an operation; what else it holds is the operation's affair."""

    @property
    def name(self) -> str:
        """For people to choose it by; unique within its operation."""

    @property
    def description(self) -> str:
        """The sizes, for tables."""


ShapeT = TypeVar("ShapeT", bound=Shape)


@dataclass(frozen=True, kw_only=True)
class KernelProblem(Problem):
    """One operation on one shape.

    Attributes:
        leaves: the inputs; N(0, 1), laid out in memory as the network lays them out.
        gradient: of the output; None for an operation without a backward pass.
        plain: the textbook formula in the inputs' own dtype; in float64 it is what is right.
    """

    leaves: tuple[Tensor, ...]
    gradient: Tensor | None
    plain: Function

    @classmethod
    def of(
        cls,
        leaves: tuple[Tensor, ...],
        gradient: Tensor | None,
        plain: Function,
        providers: Mapping[str, Callable[[], Function]],
        work: Mapping[Mode, Work],
    ) -> "KernelProblem":
        """Make a problem in whose time launches are no part."""
        return cls(
            device=leaves[0].device,
            providers=providers,
            ours=OURS,
            variants=tuple(name for name in providers if name.startswith(_VARIANT)),
            baseline=REFERENCE,
            modes=("forward",) if gradient is None else ("forward", "backward", "both"),
            work=work,
            graphs=True,
            leaves=leaves,
            gradient=gradient,
            plain=plain,
        )

    def gate(self) -> Callable[[Function], float]:
        """Return the measure of errors."""
        return Gate(self).excess

    def call(self, function: Function, mode: Mode) -> Run:
        """Return what a mode runs; "backward" does its forward pass here, once."""
        if mode == "forward":
            return lambda: _inference(function, self.leaves)
        leaves = tuple(leaf.detach().requires_grad_() for leaf in self.leaves)
        if mode == "both":
            return lambda: torch.autograd.grad(function(*leaves), leaves, self.gradient)
        out = function(*leaves)
        return lambda: torch.autograd.grad(out, leaves, self.gradient, retain_graph=True)

    def answers(self, function: Function, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """Return a function's output and, where there is a backward pass, every gradient."""
        leaves = tuple(leaf.detach().to(dtype or leaf.dtype) for leaf in self.leaves)
        if self.gradient is None:
            out = _inference(function, leaves)
            return out if isinstance(out, tuple) else (out,)
        leaves = tuple(leaf.requires_grad_() for leaf in leaves)
        out = function(*leaves)
        gradients = torch.autograd.grad(out, leaves, self.gradient.to(out.dtype))
        return (out.detach(), *gradients)


@dataclass(frozen=True)
class Space:
    """The launch configurations worth trying for one kernel."""

    mode: Mode  # the one that the kernel works in
    limits: tuple[str, ...]  # the values of a shape that tell its rows apart
    blocks: Mapping[str, tuple[int, ...]]  # by parameter; others stay what the present row says
    num_warps: tuple[int, ...] = (4, 8)
    num_stages: tuple[int, ...] = ()  # none keeps the present row's
    used: Callable[[Mapping[str, int]], bool] = lambda _: True  # whether a shape runs the kernel


@dataclass(frozen=True, eq=False)
class Operation(Generic[ShapeT]):
    """An operation as the benchmark knows it."""

    name: str
    cases: Callable[[], tuple[ShapeT, ...]]
    dry_cases: Callable[[], tuple[ShapeT, ...]]  # small enough for an interpreter
    problem: Callable[[ShapeT, torch.dtype, torch.device], KernelProblem]  # draws the inputs
    limits: Callable[[ShapeT, torch.dtype], Mapping[str, int]]  # what tables and routes bound
    spaces: Mapping[str, Space]  # what tuning tries, by kernel


class Gate:
    """The gate of a provider: at most twice the error of the plain formula in its dtype.

    The error is the relative Frobenius norm of the difference to float64, by output and gradient.
    """

    def __init__(self, problem: KernelProblem) -> None:
        self._problem = problem
        self._exact = problem.answers(problem.plain, torch.float64)
        # A few units in the last place besides: where the plain formula happens to be exact, a
        # right answer rounded once more is still right.
        plain = problem.answers(problem.plain)
        self._limits = [
            2 * error + 4 * torch.finfo(answer.dtype).eps
            for error, answer in zip(self._errors(plain), plain, strict=True)
        ]

    def excess(self, function: Function) -> float:
        """Return the worst error over its limit; above 1, or NaN, the provider is wrong."""
        self._poison()
        answers = [self._problem.answers(function)]
        if self._problem.gradient is not None:
            # Without gradients a compiler writes other code, and this is what "forward" times.
            self._poison()
            answers.append((_inference(function, self._problem.leaves),))
        ratios = [
            error / limit
            for given in answers
            for error, limit in zip(self._errors(given), self._limits[: len(given)], strict=True)
        ]
        return max(ratios, key=lambda ratio: (ratio != ratio, ratio))

    def _errors(self, answers: tuple[Tensor, ...]) -> list[float]:
        """Return the error of each answer; of an inference that is the output alone."""
        return [
            float((got.double() - exact).norm() / exact.norm())
            for got, exact in zip(answers, self._exact[: len(answers)], strict=True)
        ]

    def _poison(self) -> None:
        """Leave NaN in the memory that the next outputs get: what is not written shows."""
        for exact in self._exact:
            torch.full_like(exact, torch.nan)


def compiled(function: Function, device: torch.device) -> Function:
    """Return a function compiled for its exact shapes, as an alternative deserves.

    Raises:
        CannotError: on a CPU, where compiling would prove nothing and take long.
    """
    if device.type == "cpu":
        raise CannotError("compiled alternatives are timed on a GPU only")
    whole: Function = torch.compile(function, fullgraph=True, dynamic=False)
    return whole


def _inference(function: Function, leaves: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return function(*leaves)
