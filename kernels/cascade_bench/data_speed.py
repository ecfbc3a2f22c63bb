"""Pictures a second: everybody's batches of the same files, checked first, then read in turn.

What is timed is a stream that runs. What its workers have prepared while others had their turn is
taken from it beforehand, and the next one's turn begins when they are idle again.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from PIL import Image

from cascade.data.pack import ShardEntry, read_index
from cascade.errors import UserError
from cascade_bench.data_feeds import Asked, Feed, Squared
from cascade_bench.data_processes import family, processor_seconds
from cascade_bench.problem import Problem
from cascade_bench.records import Mode
from cascade_bench.timing import ClockStopwatch, Run

_CHECKED: Final = 4  # pictures of each provider
# RMS, grey levels. Resized by the same filter, what was decoded at a part of its size is up to two
# off; a picture that is mirrored, or another, is off by as much as it has contrast, 20 and more.
_LIMIT: Final = 4.0
_IDLE: Final = 0.1  # seconds without work, ten ticks of the system's clock
_PATIENCE: Final = 120.0  # seconds that workers may go on for


@dataclass(frozen=True)
class Reading:
    """Some batches of a feed."""

    feed: Feed
    batches: int

    def __call__(self) -> None:
        """Take them."""
        for _ in range(self.batches):
            next(self.feed.batches)


class FeedStopwatch(ClockStopwatch):
    """Times a running feed, whose work other processes do."""

    def __init__(self, reading: Reading, ahead: int) -> None:
        self.method = "wall clock"
        self.processor = []
        self._reading, self._ahead = reading, Reading(reading.feed, ahead)
        next(reading.feed.batches)
        _wait()

    def cold(self) -> float:
        """Return the time of a reading."""
        self._ahead()
        start, before = time.perf_counter(), processor_seconds(family())
        self._reading()
        taken, after = time.perf_counter() - start, processor_seconds(family())
        self.processor.append(1e6 * (after - before))
        _wait()
        return 1e6 * taken

    warm = cold


def _wait() -> None:
    """Wait until no worker has anything to do."""
    end = time.monotonic() + _PATIENCE
    before = -1.0
    while (now := processor_seconds(family()[1:])) != before:
        if time.monotonic() > end:
            raise UserError("Workers go on without being asked; nothing can be timed beside them.")
        before = now
        time.sleep(_IDLE)


@dataclass(frozen=True, kw_only=True)
class DataProblem(Problem):
    """Batches of one size.

    Attributes:
        asked: of every provider.
        batches: of a reading.
    """

    asked: Asked
    batches: int

    def gate(self) -> Callable[[Feed], float]:
        """Return the distance of the worst picture to Pillow's of the whole file, over a limit."""

        def excess(feed: Feed) -> float:
            images, names = feed.named()
            side = self.asked.size
            if images.shape != (self.asked.batch, 3, side, side) or images.dtype != torch.uint8:
                raise ValueError(f"its pictures are {images.dtype} {tuple(images.shape)}")
            pairs = zip(images[:_CHECKED], names[:_CHECKED], strict=True)
            return max(_distance(self.asked, image, *name) for image, name in pairs) / _LIMIT

        return excess

    def call(self, provider: Feed, mode: Mode) -> Reading:
        """Return what takes some batches."""
        return Reading(provider, self.batches)

    def watch(self, run: Run) -> FeedStopwatch:
        """Return what times a feed that runs."""
        assert isinstance(run, Reading)  # as `call` makes it
        return FeedStopwatch(run, self.asked.ahead)


def _distance(asked: Asked, image: torch.Tensor, shard: str, key: str) -> float:
    """Return the RMS of a picture to what Pillow makes of the whole file, grey levels."""
    (entry,) = (one for one in asked.shards if one.name == shard)
    with Image.open(io.BytesIO(_encoded(asked.folder, entry, key))) as whole:
        expected = Squared(asked.size, asked.kernel)(whole)
    return float((image.float() - expected.float()).square().mean().sqrt())


def _encoded(folder: Path, shard: ShardEntry, key: str) -> bytes:
    """Read a picture's file."""
    for part in read_index(folder / shard.index, ["key", "offset", "size"]):
        for row in part.to_pylist():
            if row["key"] == key:
                with (folder / shard.tar).open("rb") as file:
                    file.seek(row["offset"])
                    return file.read(row["size"])
    raise ValueError(f"the index of {shard.name} has no {key}")
