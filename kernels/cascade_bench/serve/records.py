"""Records of `cascade bench serve`."""

import statistics
from collections.abc import Sequence
from typing import Literal, Self, TypeAlias

from cascade.config.base import Frozen

Outcome: TypeAlias = Literal["drawn", "late", "refused", "left", "failed", "cut", "lost"]
"""A request's picture came in time; it came too late or was given up; it was refused for want of
room; its client left; the answer is an error; the connection ended without one; none came."""

UNANSWERED: tuple[Outcome, ...] = ("cut", "lost")

PERCENTILES = (50, 95, 99)


class Load(Frozen):
    """What became of requests that were sent to a server for a while.

    Attributes:
        asked: pictures a second that were sent; None where each client waits for its answer.
        seconds: from the first request to the last answer.
        pictures: that were drawn in time.
        outcomes: how many requests ended so.
        latencies: seconds of those whose pictures were drawn in time, in the order of their end.
        lag: the most seconds that a request was sent too late, which is the bench's own fault.
        unadvised: refusals that did not say when to come again.
        different: pictures that were not, bit for bit, what the same prompt and seed gave before.
        memory: seconds, and the bytes that the server's processes held then.
        left_over: what the server still counts after the last answer; empty where it is nothing.
        told: of errors, each once.
    """

    asked: float | None
    seconds: float
    pictures: int
    outcomes: dict[Outcome, int]
    latencies: tuple[float, ...]
    lag: float
    unadvised: int
    different: int
    memory: tuple[tuple[float, int], ...]
    left_over: dict[str, float]
    told: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Pictures a second that came in time."""
        return self.pictures / self.seconds

    @property
    def unanswered(self) -> int:
        """Requests that got no answer at all."""
        return sum(self.outcomes.get(name, 0) for name in UNANSWERED)

    def percentile(self, percent: int) -> float | None:
        """Return a percentile of the latencies, seconds."""
        return percentile(self.latencies, percent)


class Admission(Frozen):
    """A one-picture request beside a large one.

    Attributes:
        begun: seconds until the small one was drawn.
        done: seconds until its picture was there.
        large: seconds of the large one, if there is one.
    """

    begun: float
    done: float
    large: float | None


class Ending(Frozen):
    """A server that is told to end, or killed, while it works.

    Attributes:
        status: its exit status.
        seconds: until it had ended.
        outcomes: what became of the requests that it had.
        told: the most seconds until a client that got no picture knew.
    """

    status: int
    seconds: float
    outcomes: dict[Outcome, int]
    told: float | None


class Steadiness(Frozen):
    """Memory over time: medians of the second and the last quarter, bytes."""

    before: float
    after: float

    @classmethod
    def of(cls, memory: Sequence[tuple[float, int]]) -> Self | None:
        """Return that of a series; None where it is too short to tell."""
        quarter = len(memory) // 4
        if not quarter:
            return None
        held = [size for _, size in memory]
        before = statistics.median(held[quarter : 2 * quarter])
        return cls(before=before, after=statistics.median(held[-quarter:]))


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return the least value that so many percent of all do not exceed."""
    if not values:
        return None
    place = -(-len(values) * percent // 100)
    return sorted(values)[max(0, place - 1)]
