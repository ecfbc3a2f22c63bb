"""What is measured, and how: cases, the providers of each, the gate that these must pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from cascade_bench.records import Mode, Work
from cascade_bench.timing import Run

Provider: TypeAlias = Any
"""One way to do a case, made and ready; what it is, is the problem's affair."""


class CannotError(RuntimeError):
    """A provider cannot run a problem; the message is the reason."""


class Problem(Protocol):
    """One case with its inputs, who can do it, and what is right."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What can be timed."""

    @property
    def providers(self) -> Mapping[str, Callable[[], Provider]]:
        """Makers by name; a maker may refuse with one of `measuring.refusals`."""

    @property
    def ours(self) -> str:
        """The provider that is this project's; the others are its alternatives."""

    @property
    def baseline(self) -> str:
        """The provider whose drift is watched, and with which others are compared."""

    @property
    def work(self) -> Mapping[Mode, Work]:
        """What each mode must do at the least; empty where nobody has counted."""

    @property
    def weighed(self) -> bool:
        """Whether the memory of a call is told."""

    @property
    def graphs(self) -> bool:
        """Whether launches are no part of the time."""

    def gate(self) -> Callable[[Provider], float]:
        """Return what gives a provider's error over its limit; above 1, or NaN, it is wrong."""

    def call(self, provider: Provider, mode: Mode) -> Run:
        """Return what a mode runs."""


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
