"""What a scheduler tells of itself while it works: the seam of metrics."""

from typing import Literal, Protocol

Outcome = Literal["drawn", "cancelled", "late", "failed"]


class Watch(Protocol):
    """Takes figures from the worker's thread; every method must return at once."""

    def step(self, model: str, stage: str, pictures: int, rows: int, seconds: float) -> None:
        """Note a call of a network.

        Args:
            model: of the first of its pictures.
            pictures: how many shared it.
            rows: of the call, without what fills it up.
            seconds: until the answer; on a GPU until it was asked for.
        """

    def text(self, model: str, kept: bool) -> None:
        """Note a prompt for a stage; `kept` says that its embedding was there already."""

    def waited(self, model: str, seconds: float) -> None:
        """Note how long a picture has waited when it leaves the queue."""

    def drawn(self, model: str, seconds: float) -> None:
        """Note how long a picture was drawn once it had left the queue."""

    def ended(self, model: str, outcome: Outcome) -> None:
        """Note how an order ended."""


class Nobody:
    """A `Watch` that notes nothing."""

    def step(self, model: str, stage: str, pictures: int, rows: int, seconds: float) -> None:
        """Do nothing."""

    def text(self, model: str, kept: bool) -> None:
        """Do nothing."""

    def waited(self, model: str, seconds: float) -> None:
        """Do nothing."""

    def drawn(self, model: str, seconds: float) -> None:
        """Do nothing."""

    def ended(self, model: str, outcome: Outcome) -> None:
        """Do nothing."""
