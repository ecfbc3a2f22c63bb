"""Records of a benchmark: every sample of every provider of every case.

Times are microseconds, rates bytes or operations per second.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, Self, TypeAlias

from cascade.config.base import Frozen

Mode: TypeAlias = Literal["forward", "backward", "both", "step", "reading"]
"""A call without gradients, its backward pass alone, both, a whole training step, or batches of a
stream that others prepare."""

Method = Literal["graph", "events", "wall clock", "processor's clock"]
Status = Literal["ok", "wrong", "cannot"]


class Work(Frozen):
    """The least work of a case, which gives the physical floor."""

    bytes: int
    flops: int


class Peaks(Frozen):
    """The device's ceilings, measured in the same run: bytes read plus written, and bf16 FLOP.

    Attributes:
        nominal_rate: bf16 FLOP by its maker's data sheet, which a utilization is of.
    """

    copy_bandwidth: float
    matmul_rate: float
    nominal_rate: float | None = None

    def floor(self, work: Work) -> float:
        """Return the least time for some work, microseconds."""
        return 1e6 * max(work.bytes / self.copy_bandwidth, work.flops / self.matmul_rate)


class Timing(Frozen):
    """Samples of one provider: with the L2 cache flushed before every run, and without.

    Attributes:
        eager: of calls that Python launches one by one; empty where the others have it in them.
        processor: what the cold ones took of the processors, by all processes; empty where one
            process does the work, or a device.
    """

    method: Method
    cold: tuple[float, ...]
    warm: tuple[float, ...]
    eager: tuple[float, ...] = ()
    processor: tuple[float, ...] = ()
    note: str = ""

    @property
    def median(self) -> float:
        """The middle of the cold samples, which stand for a run amid a network."""
        return statistics.median(self.cold)

    def samples(self, eager: bool) -> tuple[float, ...]:
        """Return those that a run in a compiled or captured network is judged by, or an eager."""
        return self.eager if eager else self.cold

    @property
    def median_processor(self) -> float | None:
        """The middle of what was taken of the processors."""
        return statistics.median(self.processor) if self.processor else None


class Row(Frozen):
    """One provider in one mode of one case.

    Attributes:
        error: the worst relative error over the limit that it had to keep.
        peak: bytes allocated at once beside what was there; None where that is not weighed.
        flops: operations of the call as its network needs them; None where they are not counted.
        comparable: whether it does the same thing as ours.
    """

    mode: Mode
    provider: str
    status: Status
    reason: str = ""
    error: float | None = None
    peak: int | None = None
    flops: int | None = None
    comparable: bool = True
    timing: Timing | None = None


class Spread(Frozen):
    """Of ratios that were taken pair by pair: the median, and the 20th and 80th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Self:
        """Return that of theirs over ours."""
        ratios = [other / one for one, other in zip(ours, theirs, strict=True)]
        fifths = statistics.quantiles(ratios, n=5, method="inclusive")
        return cls(median=statistics.median(ratios), low=fifths[0], high=fifths[-1])


class CaseResult(Frozen):
    """Every provider of one case.

    Attributes:
        group: the operation, network, stage or cascade.
        baseline: the provider that the others are compared with.
        ours: the provider that is this project's; the others are its alternatives.
        variants: providers that are this project's as well; the fastest of them stands for it.
        images: that a call works on; 0 where that is not what it does.
        drift: of the baseline by mode, from the first round to the last.
        state: clocks, power, temperature, throttling: before and after.
    """

    group: str
    case: str
    description: str
    baseline: str
    ours: str
    variants: tuple[str, ...] = ()
    work: dict[Mode, Work]
    images: int = 0
    drift: dict[Mode, float]
    state: tuple[str, str]
    rows: tuple[Row, ...]

    def valid(self, mode: Mode, most: float = 0.02) -> bool:
        """Tell whether the device stood still while a mode was timed.

        On a CPU nobody does: there the spread of the pairs says how sure a ratio is.
        """
        timings = [row.timing for row in self.rows if row.mode == mode and row.timing]
        on_gpu = any(timing.method in ("graph", "events") for timing in timings)
        return not on_gpu or self.drift.get(mode, 1.0) < most

    def find(self, mode: Mode, provider: str) -> Row | None:
        """Return a provider's row of a mode."""
        found = (row for row in self.rows if row.mode == mode and row.provider == provider)
        return next(found, None)

    def samples(self, mode: Mode, provider: str, eager: bool = False) -> tuple[float, ...]:
        """Return a provider's samples; none if it did not pass or was not timed so."""
        row = self.find(mode, provider)
        return row.timing.samples(eager) if row and row.timing else ()

    def time(self, mode: Mode, provider: str, eager: bool = False) -> float | None:
        """Return a provider's median, if it passed and was timed."""
        samples = self.samples(mode, provider, eager)
        return statistics.median(samples) if samples else None

    def best(self, mode: Mode, eager: bool = False) -> str | None:
        """Return the fastest alternative that does the same thing and passed."""
        own = (self.ours, *self.variants)
        others = (
            row.provider
            for row in self.rows
            if row.mode == mode and row.provider not in own and row.comparable
        )
        return self._fastest(others, mode, eager)

    def own(self, mode: Mode, eager: bool = False) -> str:
        """Return the fastest of this project's providers."""
        return self._fastest((self.ours, *self.variants), mode, eager) or self.ours

    def _fastest(self, names: Iterable[str], mode: Mode, eager: bool) -> str | None:
        times = {name: self.time(mode, name, eager) for name in names}
        found = [(time, name) for name, time in times.items() if time is not None]
        return min(found)[1] if found else None

    def ratio(self, mode: Mode, provider: str, to: str, eager: bool = False) -> Spread | None:
        """Return the time of `to` over a provider's, pair by pair of one run: above 1 is faster."""
        samples = self.samples(mode, provider, eager), self.samples(mode, to, eager)
        return Spread.of(*samples) if all(samples) else None

    def processor_ratio(self, mode: Mode, provider: str, to: str) -> Spread | None:
        """Return the same ratio of what is taken of the processors."""
        one, other = self.find(mode, provider), self.find(mode, to)
        if one is None or other is None or one.timing is None or other.timing is None:
            return None
        taken = one.timing.processor, other.timing.processor
        # Nothing is shorter than a tick of the system's clock.
        return Spread.of(*taken) if all(all(of) for of in taken) else None

    def gain(self, mode: Mode, eager: bool = False) -> float | None:
        """Return the best alternative's time over ours; None where the device drifted."""
        best = self.best(mode, eager)
        found = None if best is None else self.ratio(mode, self.own(mode, eager), best, eager)
        return found.median if found and self.valid(mode) else None
