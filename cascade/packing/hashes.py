"""Near copies among 64-bit perceptual hashes, by Hamming distance, found exactly.

Shapes: `N` hashes, uint64, in the order in which they are kept.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb
from typing import Final

import numpy as np

BITS: Final = 64
_SORTING: Final = 200.0  # comparisons that a hash costs when it is sorted
_MOST_KEYS: Final = 200  # ways to sort; each costs time alone where there are few hashes
_AT_ONCE: Final = 2**22  # pairs compared at a time


def first_of_copies(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return for each hash which one is kept in its stead, N int64; its own place where it stays.

    One hash after another is kept unless one that is kept already lies within the distance. So no
    two that are kept are near each other, and each that goes is near the one named for it: chains
    of small steps do not join pictures that are far apart.

    Memory peaks at some 90 bytes a hash, and 24 more for each pair of near hashes that are neither
    exact copies nor near a hash that has nothing near before it.

    Args:
        hashes: N uint64.
        distance: bits that may differ, 0 to 16.
    """
    different, first, copies = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by the first place of each, which stands for its exact copies
    first = first[order]
    kept = _greedy(different[order], distance) if distance else np.arange(len(first))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    stays: np.ndarray = first[kept[rank[copies]]]
    return stays


def _greedy(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return for each of N different hashes which one is kept in its stead, N int64."""
    behind, touched = np.zeros((2, len(hashes)), dtype=bool)
    for earlier, later in near_pairs(hashes, distance):
        behind[later] = True
        touched[earlier] = touched[later] = True
    # What has nothing near before it stays, and what is near that goes: of a crowd of hashes all
    # near each other, whose pairs would not fit in memory, that leaves one.
    none = len(hashes)
    kept = np.where(behind, none, np.arange(none))
    crowd = np.flatnonzero(touched)
    for earlier, later in near_pairs(hashes[crowd], distance):
        root = ~behind[crowd[earlier]]
        np.minimum.at(kept, crowd[later[root]], crowd[earlier[root]])
    left = np.flatnonzero(kept == none)
    found = [later * len(left) + earlier for earlier, later in near_pairs(hashes[left], distance)]
    pairs = np.unique(np.concatenate([np.empty(0, np.int64), *found]))  # by the later one first
    for later, earlier in left[np.stack(np.divmod(pairs, max(1, len(left))))].T.tolist():
        if kept[later] == none and kept[earlier] == none:  # by now the earlier one is decided
            kept[later] = earlier
    return np.where(kept == none, np.arange(none), kept)


def near_pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of hashes within a distance as their places: the earlier ones, the later.

    Cut into `distance` + k bands of bits, two near hashes are equal in at least k of the bands, as
    differing bits lie in at most `distance` of them (the pigeonhole principle). So they are equal
    in some choice of k bands, and stand together when sorted by it. A pair may come several times.
    """
    for mask in _masks(len(hashes), distance) if len(hashes) > 1 else ():
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        ordered, keys = hashes[order], keys[order]
        bounds = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1], True])
        alive = np.flatnonzero(keys[1:] == keys[:-1])
        ends = bounds[np.searchsorted(bounds, alive, "right")]  # of the run of equal keys
        del keys, bounds
        step = 1
        while len(alive):
            for begin in range(0, len(alive), _AT_ONCE):
                part = alive[begin : begin + _AT_ONCE]
                apart = np.bitwise_count(ordered[part] ^ ordered[part + step])
                part = part[apart <= distance]
                if len(part):  # a stable sort keeps the earlier one of equal keys before the later
                    yield order[part], order[part + step]
            step += 1
            on = ends > alive + step
            alive, ends = alive[on], ends[on]


def _masks(count: int, distance: int) -> list[np.uint64]:
    """Return the bits to sort by, for each choice of bands; see `near_pairs`."""

    def cost(chosen: int) -> float:
        bands = distance + chosen
        alike = count / 2 ** (BITS * chosen / bands)
        return comb(bands, chosen) * (_SORTING + alike / 2)

    counts = range(1, BITS - distance + 1)
    chosen = min((k for k in counts if comb(distance + k, k) <= _MOST_KEYS), key=cost)
    edges = np.linspace(0, BITS, distance + chosen + 1).round().astype(int).tolist()
    bands = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    return [np.uint64(sum(some)) for some in combinations(bands, chosen)]
