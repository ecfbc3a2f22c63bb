"""A stream of a large pack in a fresh process: what `cascade bench data` starts and weighs.

    python -m cascade_bench.data_fresh JOB

JOB is a file that holds a `Job`. Prints a line of JSON, a `Fresh`.
"""

import sys
import time
from pathlib import Path
from typing import Final

import torch

from cascade.config.base import Frozen
from cascade.environment import held_memory, peak_memory, reset_peak_memory
from cascade.errors import UserError
from cascade.files import read_json
from cascade_bench.data_feeds import Asked
from cascade_bench.data_processes import Peak

PARTS: Final = 4
"""Of what is read: the memory is told after each."""

_CPU: Final = torch.device("cpu")


class Job(Frozen):
    """Whose stream is read from the middle of a pack on, and how many pictures of it."""

    provider: str
    folder: Path
    scratch: Path
    size: int
    batch: int
    workers: int
    start: int
    pictures: int


class Fresh(Frozen):
    """What that took: seconds from the beginning, and bytes.

    Attributes:
        opened: until there was a stream.
        decided: until a record was chosen; None where nothing is chosen apart from reading.
        first: until the first batch was there.
        peak: that this process held up to the choice, beside the program itself.
        held: by this process and its workers, at most, in each part of what is read.
    """

    opened: float
    decided: float | None
    first: float
    peak: int
    held: tuple[int, ...]


def read(job: Job) -> Fresh:
    """Read it."""
    # Not above: workers load this module anew, and are weighed.
    from cascade_bench.data_providers import PROVIDERS

    asked = Asked(job.folder, job.scratch, job.size, job.batch, job.workers, start=job.start)
    reset_peak_memory(_CPU)
    program, begun = held_memory(_CPU), time.perf_counter()
    feed = PROVIDERS[job.provider](asked)
    opened, decided = time.perf_counter() - begun, None
    if feed.decide is not None:
        feed.decide(job.start)
        decided = time.perf_counter() - begun
    peak = peak_memory(_CPU) - program
    with Peak() as memory:
        next(feed.batches)
        first = time.perf_counter() - begun
        held, taken = list[int](), 1
        for part in range(1, PARTS + 1):
            while taken < part * job.pictures // (PARTS * job.batch):
                next(feed.batches)
                taken += 1
            held.append(memory.take())
    return Fresh(opened=opened, decided=decided, first=first, peak=peak, held=tuple(held))


def main(path: str) -> None:
    """Read what a file says."""
    job = Job.parse(read_json(Path(path), "it is the benchmark's own"), path)
    sys.stdout.write(read(job).model_dump_json() + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
