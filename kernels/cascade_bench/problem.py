"""Cases of a benchmark, the providers of each, and the gate that these must pass."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from cascade.errors import UserError
from cascade_bench.records import Mode, Work
from cascade_bench.timing import Run, Stopwatch, stopwatch

Provider: TypeAlias = Any
"""One way to do a case, made and ready; what it is, is the problem's affair."""


class CannotError(RuntimeError):
    """A provider cannot run a problem; the message is the reason."""


def missing(package: str, error: ImportError) -> UserError:
    """Return what is told of a package to compare with that is not installed."""
    return UserError(
        f"To compare with {package}, install it: pip install {package}; or leave it out of "
        f"--against. ({error})"
    )


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """One case with its inputs, who can do it, and what is right.

    Attributes:
        device: where it runs.
        providers: makers by name; a maker may refuse with one of `measuring.refusals`.
        ours: the provider that is this project's; the others are its alternatives.
        variants: providers that are this project's as well.
        baseline: the provider whose drift is watched, and with which others are compared.
        modes: what can be timed.
        work: what each mode must do at the least; empty where nobody has counted.
        images: that a call works on; 0 where that is not what it does.
        weighed: whether the memory of a call is told.
        graphs: whether launches are no part of the time.
    """

    device: torch.device
    providers: Mapping[str, Callable[[], Provider]]
    ours: str
    variants: tuple[str, ...] = ()
    baseline: str
    modes: tuple[Mode, ...] = ("forward",)
    work: Mapping[Mode, Work] = field(default_factory=dict)
    images: int = 0
    weighed: bool = False
    graphs: bool = False

    @abstractmethod
    def gate(self) -> Callable[[Provider], float]:
        """Return what gives a provider's error over its limit; above 1, or NaN, it is wrong."""

    @abstractmethod
    def call(self, provider: Provider, mode: Mode) -> Run:
        """Return what a mode runs."""

    def watch(self, run: Run) -> Stopwatch:
        """Return what times a call."""
        return stopwatch(run, self.device, self.graphs)

    def comparable(self, provider: Provider) -> bool:
        """Tell whether a provider does the same thing as ours."""
        return True

    def flops(self, provider: Provider, mode: Mode) -> int | None:
        """Return the operations of a call, or None where they are not counted."""
        return None


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        group: the operation, network, stage or cascade.
        name: for people to choose it by; unique within its group.
        description: its sizes, for tables.
        open: draws its inputs.
    """

    group: str
    name: str
    description: str
    open: Callable[[], Problem]
