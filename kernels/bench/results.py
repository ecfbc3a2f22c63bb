"""What a benchmark found, as it is kept: every sample, and where and with what it was taken.

Times are microseconds, rates bytes or operations per second.
"""

import json
import statistics
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cascade.config.base import Frozen
from cascade.errors import UserError
from cascade.files import write_bytes

Mode = Literal["forward", "backward", "both"]
Method = Literal["graph", "events", "wall clock"]
Status = Literal["ok", "wrong", "cannot"]

OURS = "triton"
"""The provider that is this project's kernel; the others are its alternatives."""


class Work(Frozen):
    """What an operation must do at the least, and what its algorithm moves.

    The first two give the physical floor. `moved` counts the passes that the kernel makes over
    its tensors, where that is more than once each: achieved bandwidth is told from it.
    """

    bytes: int
    flops: int
    moved: int


class Peaks(Frozen):
    """The device's ceilings, measured in the same run: bytes read plus written, and bf16 FLOP."""

    copy_bandwidth: float
    matmul_rate: float

    def floor(self, work: Work) -> float:
        """Return the least time for some work, microseconds."""
        return 1e6 * max(work.bytes / self.copy_bandwidth, work.flops / self.matmul_rate)


class Timing(Frozen):
    """Samples of one provider: with the L2 cache flushed before every run, and without."""

    method: Method
    cold: tuple[float, ...]
    warm: tuple[float, ...]
    note: str = ""

    @property
    def median(self) -> float:
        """The middle of the cold samples, which stand for a run amid a network."""
        return statistics.median(self.cold)

    def spread(self) -> tuple[float, float]:
        """Return the 20th and the 80th percentile of the cold samples."""
        fifths = statistics.quantiles(self.cold, n=5, method="inclusive")
        return fifths[0], fifths[-1]


class Row(Frozen):
    """One provider in one mode of one case."""

    mode: Mode
    provider: str
    status: Status
    reason: str = ""
    error: float | None = None  # the worst relative error over the limit that it had to keep
    timing: Timing | None = None


class CaseResult(Frozen):
    """Every provider of one operation on one shape."""

    op: str
    case: str
    description: str
    dtype: str
    work: dict[Mode, Work]
    drift: dict[Mode, float]  # of the reference, from the first round to the last
    state: tuple[str, str]  # clocks, power, temperature, throttling: before and after
    rows: tuple[Row, ...]

    def valid(self, mode: Mode, most: float = 0.02) -> bool:
        """Whether the device stood still while a mode was timed."""
        return self.drift.get(mode, 1.0) < most

    def find(self, mode: Mode, provider: str) -> Row | None:
        """Return a provider's row of a mode."""
        found = (row for row in self.rows if row.mode == mode and row.provider == provider)
        return next(found, None)

    def ours(self, mode: Mode) -> float | None:
        """Return the kernel's median time, if it passed and was timed."""
        row = self.find(mode, OURS)
        return row.timing.median if row and row.timing else None

    def best(self, mode: Mode, among: Collection[str] | None = None) -> tuple[str, float] | None:
        """Return the fastest alternative that passed, and its median time.

        Args:
            mode: of running it.
            among: the providers that count; None is all but ours.
        """
        times = [
            (row.timing.median, row.provider)
            for row in self.rows
            if row.mode == mode
            and row.provider != OURS
            and row.timing
            and (among is None or row.provider in among)
        ]
        return (min(times)[1], min(times)[0]) if times else None


class Results(Frozen):
    """One run of the benchmark."""

    dry_run: bool
    shapes: int  # version of the list of shapes
    rounds: int
    environment: dict[str, str]
    peaks: Peaks
    cases: tuple[CaseResult, ...] = ()

    def of(self, op: str) -> Iterator[CaseResult]:
        """Iterate over the cases of an operation."""
        return (case for case in self.cases if case.op == op)


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        UserError: it is damaged or of another version.
    """
    try:
        return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{path} holds no results that this version reads ({error.error_count()} mistakes); "
            "remove it and measure again."
        ) from None


def write_results(results: Results, path: Path) -> None:
    """Write a results file; a reader sees either the whole file or none."""
    text = json.dumps(results.model_dump(mode="json"), indent=1)
    write_bytes((text + "\n").encode(), path)
