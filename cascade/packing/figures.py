"""Figures of data sets of any size in bounded memory: parts are added, and none is kept."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np

from cascade.data.order import mixed

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_SAMPLED: Final = 2**15
"""Numbers that quantiles are of, drawn evenly from more: right to half a percent of all numbers."""
MOST_NAMES: Final = 2**16
"""Names that are counted; where there are more, the rare ones are forgotten now and then."""


class Spread:
    """How numbers are spread: least, most, mean, and quantiles."""

    def __init__(self) -> None:
        self.count, self._sum = 0, 0.0
        self._least, self._most = np.inf, -np.inf
        self._seen = 0
        self._keys, self._sample = np.empty(0, np.uint64), np.empty(0)

    def add(self, values: np.ndarray) -> None:
        """Add numbers; what is not finite is not known."""
        keys = mixed(np.arange(self._seen, self._seen + len(values)))
        self._seen += len(values)
        known = np.isfinite(values)
        values, keys = values[known].astype(np.float64), keys[known]
        if not len(values):
            return
        self.count += len(values)
        self._sum += float(values.sum())
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))
        # The smallest of random keys are an even sample, whatever the parts.
        self._keys = np.concatenate([self._keys, keys])
        self._sample = np.concatenate([self._sample, values])
        if len(self._keys) > MOST_SAMPLED:
            smallest = np.argpartition(self._keys, MOST_SAMPLED)[:MOST_SAMPLED]
            self._keys, self._sample = self._keys[smallest], self._sample[smallest]

    def told(self) -> dict[str, float]:
        """Return the figures by name; none where there were no numbers."""
        if not self.count:
            return {}
        inner = np.quantile(self._sample, QUANTILES)
        return {
            "min": self._least,
            **{f"{share:.0%}": float(value) for share, value in zip(QUANTILES, inner, strict=True)},
            "max": self._most,
            "mean": self._sum / self.count,
        }


@dataclass
class Bins:
    """A histogram.

    Attributes:
        edges: between the bins, ascending; what equals one is above it.
        labels: of the bins, one more.
    """

    edges: tuple[float, ...]
    labels: tuple[str, ...]
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.counts = np.zeros(len(self.labels), dtype=np.int64)

    @classmethod
    def whole(cls, *edges: int) -> "Bins":
        """Make bins of whole numbers."""
        inner = (
            str(low) if low == high - 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)
        )
        return cls(edges, (f"below {edges[0]}", *inner, f"{edges[-1]} and more"))

    @classmethod
    def nearest(cls, ratios: Sequence[tuple[int, int]]) -> "Bins":
        """Make bins of ratios such as 3:2, ascending; a number is in the nearest one's."""
        values = [one / other for one, other in ratios]
        edges = tuple((one * other) ** 0.5 for one, other in pairwise(values))
        return cls(edges, tuple(f"{one}:{other}" for one, other in ratios))

    def add(self, values: np.ndarray) -> None:
        """Add numbers."""
        places = np.searchsorted(self.edges, values, side="right")
        self.counts += np.bincount(places, minlength=len(self.labels))

    def told(self) -> dict[str, int]:
        """Return the counts by label, without the empty bins at the ends."""
        full = np.flatnonzero(self.counts)
        if not len(full):
            return {}
        inside = slice(full[0], full[-1] + 1)
        return dict(zip(self.labels[inside], self.counts[inside].tolist(), strict=True))


class Tally:
    """How often names occur: exact, and at least so often where there are too many names."""

    def __init__(self) -> None:
        self._counts = Counter[Any]()

    def add(self, counts: Mapping[Any, int] | Iterable[tuple[Any, int]]) -> None:
        """Add names with their counts."""
        for name, count in dict(counts).items():
            self._counts[name] += count
        if len(self._counts) > MOST_NAMES:
            self._counts = Counter(dict(self._counts.most_common(MOST_NAMES // 2)))

    def told(self, most: int) -> dict[Any, int]:
        """Return the most frequent names."""
        return dict(sorted(self._counts.items(), key=lambda item: (-item[1], str(item[0])))[:most])
