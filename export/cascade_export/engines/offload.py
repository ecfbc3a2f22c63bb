"""A budget for the weights of a cascade's stages: those of stages that wait may leave memory."""

import math
import threading
from typing import Protocol

from cascade.errors import UserError


class Offloadable(Protocol):
    """Something whose weights can leave memory and come back."""

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of its weights."""

    def load(self) -> None:
        """Load the weights."""

    def unload(self) -> None:
        """Free the weights."""


class Budget:
    """Keeps loaded weights within a number of bytes; the longest unused leave first.

    A call that runs while its engine is unloaded ends on its own reference: for that long the
    budget is exceeded.

    Args:
        most: bytes for weights; None is no limit.

    Attributes:
        lock: held while weights come and go.
    """

    def __init__(self, most: int | None = None) -> None:
        self.lock = threading.RLock()
        self._most = math.inf if most is None else most
        self._loaded: list[Offloadable] = []  # the longest unused first

    def check(self, one: Offloadable) -> None:
        """Refuse what does not fit even alone."""
        if one.weight_bytes > self._most:
            raise UserError(
                f"One stage's weights take {one.weight_bytes / 1e6:.0f} MB and the limit is "
                f"{self._most / 1e6:.0f} MB; raise the limit or take a smaller precision."
            )

    def use(self, one: Offloadable) -> None:
        """Load weights if they are not there, after unloading others that leave them no room."""
        with self.lock:
            if one in self._loaded:
                self._loaded.remove(one)
            else:
                self.check(one)
                while self._taken() + one.weight_bytes > self._most:
                    self._loaded.pop(0).unload()
                one.load()
            self._loaded.append(one)

    def forget(self, one: Offloadable) -> None:
        """Unload what is not to be used again."""
        with self.lock:
            if one in self._loaded:
                self._loaded.remove(one)
                one.unload()

    def _taken(self) -> int:
        return sum(each.weight_bytes for each in self._loaded)
