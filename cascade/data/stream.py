"""The stream of a run's micro-batches: made ahead, in order, from any position on.

A *position* is an index into the endless stream of training samples. Everything random about a row
(which sample, its flip, its dropped caption, its timestep and noise) is a function of the run's
seed and the position, so a run can stop and go on anywhere, on any number of processes, and its
rows do not depend on who makes them.
"""

import json
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Final, Protocol

from torch.utils.data import DataLoader, Dataset

from cascade.data.batch import Batch
from cascade.errors import UserError
from cascade.launch import end_with_parent
from cascade.progress import warn

_AHEAD: Final = 2  # micro-batches that each worker prepares
_RESTARTS: Final = 3  # of workers that were killed, one soon after another, until a run ends
_SOON: Final = 100  # micro-batches
_TOLERATED: Final = 10  # rows whose pictures are of no use, whatever their share
SKIPPED: Final = "skipped.jsonl"
"""Names in a run's folder the pictures that were of no use."""
_NAMED: Final = 5  # of them told one by one


@dataclass(frozen=True)
class RankSlice:
    """The part of each global batch that one process works on.

    A global batch of `batch_size` positions is cut into `accumulation` turns; of each turn a
    process takes every `world_size`-th position, so that each has lanes of its own (`Order`).
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def micro_batch(self) -> int:
        """Positions in one micro-batch."""
        return self.batch_size // (self.accumulation * self.world_size)

    def positions(self, start: int, turn: int) -> range:
        """Return the positions of the `turn`-th micro-batch of the global batch at `start`."""
        width = self.batch_size // self.accumulation
        first = start + turn * width
        return range(first + self.rank, first + width, self.world_size)


class Samples(Protocol):
    """A source with random access: rows as a pure function of their positions."""

    def rows(self, positions: Sequence[int]) -> Batch:
        """Return the rows at these positions of the stream."""
        ...


@dataclass(frozen=True)
class Skipping:
    """What is done about rows whose pictures are of no use.

    Attributes:
        most: their share of all rows, above which the run stops.
        log: gets a line for each.
    """

    most: float = 0.0
    log: Path | None = None


@dataclass(frozen=True)
class Stream:
    """An endless source of micro-batches that can start at any position.

    Attributes:
        samples: where rows come from.
        prefetch: prepare the next micro-batch while one is worked on; of no use where a device
            gathers rows.
        workers: processes that prepare them; 0 is a thread of this one.
        pin: put them where a GPU copies from without the host's help.
        bring: called from a thread with positions that will be asked for, to fetch what is far.
        ahead: how many positions ahead of the rows that is.
        skipping: what is done about pictures of no use.
    """

    samples: Samples
    prefetch: bool = True
    workers: int = 0
    pin: bool = False
    bring: Callable[[Sequence[int]], None] | None = None
    ahead: int = 0
    skipping: Skipping = Skipping()

    def batches(self, start: int, part: RankSlice) -> Iterator[Batch]:
        """Yield a process's micro-batches from the global batch at `start` on, in order."""
        with _Bringing(self, start, part) as bringing, closing(self._made(start, part)) as made:
            counts = _Skipped(self.skipping)
            for number, batch in enumerate(made):
                bringing.reach(number)
                counts.add(batch)
                yield batch

    def _made(self, start: int, part: RankSlice) -> Generator[Batch]:
        turns = _turns(start, part)
        if self.workers:
            return self._by_processes(start, part)
        if self.prefetch:
            return _by_thread(self.samples, turns)
        return (self.samples.rows(turn) for turn in turns)

    def _by_processes(self, start: int, part: RankSlice) -> Generator[Batch]:
        """Let worker processes make the batches; those that are killed are started again."""
        made = killed = before = 0
        while True:
            loader = self._loader(islice(_turns(start, part), made, None))
            try:
                for batch in loader:
                    if isinstance(batch, UserError):
                        raise batch
                    made += 1
                    yield batch
            # What was on its way from a process that was killed breaks off, in several ways.
            except (RuntimeError, OSError, EOFError) as error:
                if str(error).startswith("Caught"):  # raised by the rows
                    raise
                killed = killed + 1 if made - before < _SOON else 1
                before = made
                if killed > _RESTARTS:
                    raise UserError(
                        f"Processes that decode pictures are killed again and again ({error}); "
                        "they may lack memory, or room in /dev/shm: set data.workers lower."
                    ) from None
                warn(f"A process that decodes pictures was killed ({error}); starting it again.")

    def _loader(self, turns: Iterator[range]) -> DataLoader[Batch | UserError]:
        return DataLoader(
            _Rows(self.samples),
            batch_size=None,
            sampler=_Turns(turns),
            num_workers=self.workers,
            prefetch_factor=_AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            pin_memory=self.pin,
            multiprocessing_context=_context(),
        )


@dataclass(frozen=True)
class _Rows(Dataset[Batch | UserError]):
    """The samples as `DataLoader` asks for them."""

    samples: Samples

    def __getitem__(self, positions: Any) -> Batch | UserError:
        try:
            return self.samples.rows(positions)
        except UserError as error:  # raised, it would arrive in a traceback's words
            return error


@dataclass(frozen=True)
class _Turns:
    """Positions as `DataLoader` takes them, without an end."""

    turns: Iterator[range]

    def __iter__(self) -> Iterator[range]:
        return self.turns


def _as_it_is(batch: Any) -> Any:
    return batch


def _context() -> BaseContext:
    """Return how workers are started: a fork would copy the locks of this process's threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])  # loaded once, and shared by all
    return context


def _begin_worker(worker: int) -> None:
    """Let a worker end when the process that trains does, and not before.

    A signal that all processes are sent is that one's to answer: it ends its step first. And it may
    be killed; `DataLoader` would look at the fork server instead, which waits for its children.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    end_with_parent()


def _by_thread(samples: Samples, turns: Iterator[range]) -> Generator[Batch]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending = pool.submit(samples.rows, next(turns))
        while True:
            batch = pending.result()
            pending = pool.submit(samples.rows, next(turns))
            yield batch


def _turns(start: int, part: RankSlice) -> Iterator[range]:
    while True:
        for turn in range(part.accumulation):
            yield part.positions(start, turn)
        start += part.batch_size


class _Bringing:
    """Fetches what rows will need, a distance ahead; what fails is told where it is read."""

    def __init__(self, stream: Stream, start: int, part: RankSlice) -> None:
        self._stream, self._turns = stream, _turns(start, part)
        self._ahead = stream.ahead // max(1, part.micro_batch * part.world_size) + 1
        self._reached = 0
        self._moved = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Bringing":
        if self._stream.bring is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._moved:
            self._ended = True
            self._moved.notify()

    def reach(self, number: int) -> None:
        """Note that the micro-batch of this number is worked on."""
        with self._moved:
            self._reached = number
            self._moved.notify()

    def _run(self) -> None:
        assert self._stream.bring is not None, "it was started"
        for number, turn in enumerate(self._turns):
            with self._moved:
                while not self._ended and number > self._reached + self._ahead:
                    self._moved.wait()
                if self._ended:
                    return
            try:
                self._stream.bring(turn)
            except UserError:
                return


@dataclass
class _Skipped:
    """Counts rows whose pictures were of no use, names them, and stops a run that has many."""

    skipping: Skipping
    rows: int = 0
    skipped: int = 0

    def add(self, batch: Batch) -> None:
        self.rows += len(batch.images)
        if not batch.skipped:
            return
        for name in batch.skipped:
            self.skipped += 1
            if self.skipped <= _NAMED:
                warn(f"Another picture is taken for {name}.")
        if self.skipping.log is not None:
            with self.skipping.log.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"skipped": name}) + "\n" for name in batch.skipped)
        if self.skipped > max(_TOLERATED, self.skipping.most * self.rows):
            raise UserError(
                f"{self.skipped} of {self.rows} rows have pictures that are damaged or too small, "
                f"as {batch.skipped[-1]}; see 'cascade data check', pack them again, or raise "
                "data.most_skipped."
            )
