"""A budget for the weights of a cascade's stages: those of stages that wait may leave memory."""

import math
from typing import Protocol

from cascade.errors import UserError


class Resident(Protocol):
    """Something whose weights can leave memory and come back."""

    @property
    def weight_bytes(self) -> int:
        """What its weights take."""

    def load(self) -> None:
        """Bring the weights to where the engine runs."""

    def unload(self) -> None:
        """Free what they take."""


class Residency:
    """Keeps loaded weights within a budget; the longest unused leave first.

    Args:
        budget: bytes for weights; None is no limit.
    """

    def __init__(self, budget: int | None = None) -> None:
        self._budget = math.inf if budget is None else budget
        self._loaded: list[Resident] = []  # the longest unused first

    def check(self, one: Resident) -> None:
        """Refuse what does not fit even alone.

        Raises:
            UserError: its weights are larger than the budget.
        """
        if one.weight_bytes > self._budget:
            raise UserError(
                f"One stage's weights take {one.weight_bytes / 1e6:.0f} MB and the limit is "
                f"{self._budget / 1e6:.0f} MB; raise the limit or take a smaller precision."
            )

    def use(self, one: Resident) -> None:
        """Load weights if they are not there, after unloading others that leave them no room."""
        if one in self._loaded:
            self._loaded.remove(one)
        else:
            self.check(one)
            while self._taken() + one.weight_bytes > self._budget:
                self._loaded.pop(0).unload()
            one.load()
        self._loaded.append(one)

    def forget(self, one: Resident) -> None:
        """Unload what is not to be used again."""
        if one in self._loaded:
            self._loaded.remove(one)
            one.unload()

    def _taken(self) -> int:
        return sum(each.weight_bytes for each in self._loaded)
