"""The order of a stream of records: a function of (seed, epoch, place) that holds no permutation.

An epoch lays the shards in a row, in a new order, and cuts the row into `lanes` of equal length.
Lanes take turns: place j of the epoch is in lane j mod lanes. Within a lane, windows of so many
records are shuffled, so that no more shards are read at a time than a window spans. With as many
lanes as processes, or a multiple of that, each process reads shards of its own.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from cascade.diffusion.noise import derive_seed

_ROUNDS: Final = 8  # even, so that halves of unequal width are as they were at the end
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def permuted(index: np.ndarray, count: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """Map numbers below `count` one to one onto each other, in no memory.

    A Feistel network over the bits of `count` (Luby & Rackoff 1988); what it maps beyond `count` it
    maps again (cycle walking; Black & Rogaway 2002, section 3), at most twice on average.

    Args:
        index: int64, B, each in [0, count).
        count: of all numbers, for all or for each; at least 1.
        key: which of the maps, in [0, 2^64), for all or for each.
    """
    value = index.astype(np.uint64)
    counts = np.broadcast_to(np.asarray(count, np.uint64), value.shape)
    keys = np.broadcast_to(np.asarray(key, np.uint64), value.shape)
    bits = np.maximum(_bit_length(counts - np.uint64(1)), np.uint64(2))
    outside = np.arange(value.size)
    while outside.size:
        value[outside] = _feistel(value[outside], bits[outside], keys[outside])
        outside = outside[value[outside] >= counts[outside]]
    return value.astype(np.int64)


def mixed(*words: np.ndarray | int) -> np.ndarray:
    """Hash 64-bit words to one (the finaliser of SplitMix64; Steele, Lea & Flood 2014)."""
    hashed = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # modulo 2^64; NumPy tells of it where there is one word
        for word in words:
            hashed = _finalised((hashed ^ np.asarray(word).astype(np.uint64)) + _GOLDEN)
    return hashed


def _feistel(value: np.ndarray, bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    narrow, wide = bits >> np.uint64(1), bits - (bits >> np.uint64(1))
    left, right = value >> narrow, value & _ones(narrow)
    for number in range(_ROUNDS):
        # The left half is the wide one in even rounds.
        mask = _ones(narrow if number % 2 else wide)
        left, right = right, left ^ (mixed(keys, right, number) & mask)
    joined: np.ndarray = left << narrow | right
    return joined


def _finalised(value: np.ndarray) -> np.ndarray:
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mapped: np.ndarray = value ^ value >> np.uint64(31)
    return mapped


def _ones(bits: np.ndarray) -> np.ndarray:
    mask: np.ndarray = (np.uint64(1) << bits) - np.uint64(1)
    return mask


def _bit_length(value: np.ndarray) -> np.ndarray:
    # Exact for all that float64 holds exactly, far above any number of records.
    return np.frexp(value.astype(np.float64))[1].astype(np.uint64)


class _Epoch(NamedTuple):
    """Shards of an epoch in their order.

    Attributes:
        ends: of each on the row, the sums of the records so far.
        shift: what takes a place on the row within a shard to an index.
        key: of all that is shuffled.
    """

    ends: np.ndarray
    shift: np.ndarray
    key: int


@dataclass(frozen=True, eq=False)
class Order:
    """Which record stands at a position of the endless stream; each comes once an epoch.

    Attributes:
        counts: records of each shard, int64, none of them 0.
        seed: of the run.
        window: records that are shuffled together, over all lanes.
        lanes: parts of an epoch that are read side by side.
    """

    counts: np.ndarray
    seed: int
    window: int
    lanes: int = 1

    @property
    def total(self) -> int:
        """Records of an epoch."""
        return int(self.counts.sum())

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Return the indices of the records at these positions, int64."""
        index = np.empty_like(positions)
        epochs, places = np.divmod(positions, self.total)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            index[of_epoch] = self._of_epoch(_laid(self, int(epoch)), places[of_epoch])
        return index

    def _of_epoch(self, epoch: _Epoch, places: np.ndarray) -> np.ndarray:
        turn, lane = np.divmod(places, self.lanes)
        least, longer = divmod(self.total, self.lanes)
        start = lane * least + np.minimum(lane, longer)
        length = least + (lane < longer)
        width = -(-self.window // self.lanes)
        window, within = np.divmod(turn, width)
        size = np.minimum(width, length - window * width)
        within = permuted(within, size, mixed(epoch.key, lane, window))
        row = start + window * width + within
        index: np.ndarray = row + epoch.shift[np.searchsorted(epoch.ends, row, side="right")]
        return index


@lru_cache(maxsize=8)
def _laid(order: Order, number: int) -> _Epoch:
    counts = order.counts
    key = derive_seed(order.seed, "epoch", number)
    shards = permuted(np.arange(len(counts)), len(counts), key)
    ends = np.cumsum(counts[shards])
    first = (np.cumsum(counts) - counts)[shards]
    return _Epoch(ends, first - (ends - counts[shards]), key)
