"""Several sources of rows in one stream, in fixed shares."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np

from cascade.data.order import mixed, permuted
from cascade.diffusion.noise import derive_seed

_CYCLE: Final = 4096  # groups after which the shares are exact: they are multiples of a 4096th


@dataclass(frozen=True)
class Mixture:
    """Whose turn it is at a position, and the how-manieth row of its own stream it gives.

    Positions come in groups, of a whole number of which each source has its share in every 4096.
    A source's own rows come in their order.

    Attributes:
        weights: of the sources, in any unit; each above 0.
        seed: of the run.
        group: consecutive positions that come from one source.
    """

    weights: tuple[float, ...]
    seed: int
    group: int = 1

    def of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position, and the position in its own stream; int64."""
        if len(self.weights) == 1:
            return np.zeros_like(positions), positions
        groups, within = np.divmod(positions, self.group)
        cycles, turns = np.divmod(groups, _CYCLE)
        source, own = np.empty_like(positions), np.empty_like(positions)
        for cycle in np.unique(cycles).tolist():
            of_cycle = cycles == cycle
            whose, earlier = _laid(self, cycle)
            turn = turns[of_cycle]
            source[of_cycle] = whose[turn]
            own[of_cycle] = cycle * self.slots[whose[turn]] + earlier[turn]
        return source, own * self.group + within

    @cached_property
    def slots(self) -> np.ndarray:
        """Each source's part of a cycle, at least one: what is left goes to the largest rests."""
        exact = np.array(self.weights) / sum(self.weights) * _CYCLE
        slots = np.maximum(np.floor(exact), 1).astype(np.int64)
        missing = _CYCLE - int(slots.sum())
        for source in np.argsort(slots - exact, kind="stable")[: max(missing, 0)]:
            slots[source] += 1
        if missing < 0:  # of many sources with next to no weight
            slots[np.argmax(slots)] += missing
        return slots


@lru_cache(maxsize=8)
def _laid(mixture: Mixture, cycle: int) -> tuple[np.ndarray, np.ndarray]:
    """Return whose turn each of a cycle is, and how many of its turns are earlier in it."""
    key = derive_seed(mixture.seed, "mixture")
    slots = permuted(np.arange(_CYCLE), _CYCLE, int(mixed(key, cycle)))
    whose = np.searchsorted(np.cumsum(mixture.slots), slots, side="right")
    earlier = np.empty_like(whose)
    ranks = [np.arange(count) for count in mixture.slots]
    earlier[np.argsort(whose, kind="stable")] = np.concatenate(ranks)
    return whose, earlier
