"""Hangs and stragglers: which process is late, and where each of them stands."""

import faulthandler
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch

from cascade.progress import warn
from cascade.training.distributed import Processes

HANGS: Final = "hangs"
"""In a run's folder: what the processes were doing when a step took too long."""
_ASKED: Final = "asked"
_LOOKS: Final = 10  # at the clock, within the limit


class Place(IntEnum):
    """Places in a step, in their order."""

    DATA = 0
    FORWARD = 1
    BACKWARD = 2
    END = 3
    PAUSED = 4


class Watch:
    """Notes where each process stands, and tells who is late; of a process alone it does nothing.

    A thread looks at the clock. When a process stays in one place of a step for too long, all write
    their Python stacks to `hangs/rank-N.txt`, and the first one says whose place is the earliest.

    Args:
        limit: seconds in one place of a step; a checkpoint or pictures may take longer.
    """

    def __init__(self, run_dir: Path, processes: Processes, limit: float) -> None:
        self._folder, self._processes, self._limit = run_dir / HANGS, processes, limit
        self._stands = (0, Place.PAUSED, time.monotonic())
        self._begun: float | torch.cuda.Event = 0.0
        self._spans: list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin to look."""
        if self._processes.store is not None:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look no longer."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def at(self, step: int, place: Place) -> None:
        """Note where this process stands."""
        self._stands = (step, place, time.monotonic())
        if self._processes.world_size == 1:
            return
        if place is Place.DATA:
            self._begun = self._now()
        elif place is Place.BACKWARD:
            self._spans.append((self._begun, self._now()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let what happens inside take its time."""
        step, place, _ = self._stands
        self.at(step, Place.PAUSED)
        yield
        self.at(step, place)

    def status(self, step_seconds: float) -> dict[str, float]:
        """Return who has been the slowest since the last call; the device has nothing left to do.

        What counts is a process's own part of a step, its data and its forward pass: in the
        backward pass all wait for each other, and over shared weights in the forward pass too.

        Returns:
            `step_seconds`, `slowest_rank`, and `slowest_ratio`, its own part by the median's.
        """
        if self._processes.world_size == 1:
            return {}
        own = torch.tensor([sum(_seconds(*span) for span in self._spans)], dtype=torch.float64)
        self._spans.clear()
        parts = self._processes.all_gather(own, self._processes.world_size)
        slowest = int(parts.argmax())
        return {
            "step_seconds": step_seconds,
            "slowest_rank": slowest,
            "slowest_ratio": float(parts[slowest] / parts.median()),
        }

    def _now(self) -> float | torch.cuda.Event:
        if self._processes.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _look(self) -> None:
        store = self._processes.store
        assert store is not None, "there is a thread where there is a store"
        while not self._ended.wait(self._limit / _LOOKS):
            _, place, since = self._stands
            late = place is not Place.PAUSED and time.monotonic() - since > self._limit
            if late or store.check([_ASKED]):
                store.set(_ASKED, "")
                self._answer()
                return

    def _answer(self) -> None:
        """Write this process's stacks and place; the first process tells who is late."""
        processes, (step, place, _) = self._processes, self._stands
        assert processes.store is not None, "there is a thread where there is a store"
        self._folder.mkdir(exist_ok=True)
        with (self._folder / f"rank-{processes.rank}.txt").open("w") as file:
            file.write(f"step {step}, {place.name.lower()}\n")
            file.flush()
            faulthandler.dump_traceback(file)
        processes.store.set(str(processes.rank), json.dumps([step, place]))
        if processes.is_main:
            self._ended.wait(4 * self._limit / _LOOKS)  # until the others have looked
            self._tell()

    def _tell(self) -> None:
        store = self._processes.store
        assert store is not None, "there is a thread where there is a store"
        ranks = range(self._processes.world_size)
        stand = {
            rank: json.loads(store.get(str(rank))) for rank in ranks if store.check([str(rank)])
        }
        silent = [rank for rank in ranks if rank not in stand]
        rank, (step, place) = min(stand.items(), key=lambda item: item[1])
        told = f"process {rank} is the last, at step {step} ({Place(place).name.lower()})"
        if silent:
            told = f"no answer from {', '.join(map(str, silent))}; of the others {told}"
        warn(
            f"A step takes longer than {self._limit:.0f} s: {told}. What the processes are doing "
            f"is in {self._folder}."
        )


def _seconds(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert not isinstance(begin, float), "one kind of clock"
    assert not isinstance(end, float), "one kind of clock"
    return float(begin.elapsed_time(end)) / 1000
