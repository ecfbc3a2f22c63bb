"""Time of one call on the device, without what surrounds it.

A CUDA graph of K times (write over the L2 cache; run) minus one of K such writes leaves K runs from
cold memory and no launch from the CPU ("cold"); a graph of K bare runs finds their inputs in the
cache ("warm"). Timing single launches with events would measure the CPU wherever a kernel takes
less than some 10 microseconds, which most of ours do.

What such launches cost is a time of its own, "eager": that of calls as a network makes them which
is neither compiled nor captured.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from cascade_bench.records import Method, Timing

Run = Callable[[], object]

_GRAPH_MICROSECONDS = 2000.0  # work in one graph: long against the resolution of an event, 0.5 us
_COPIES = (4, 64)
_EAGER_MICROSECONDS = 5000.0
_CALLS = (10, 200)
_WARM_UPS = 3


class EagerClock:
    """Times calls that Python launches back to back, by the clock on the wall until all are done.

    A call so costs what takes longer: the CPU to launch it, or the device to run it.
    """

    def __init__(self, run: Run, calls: int) -> None:
        self._run, self._calls = run, calls

    def read(self) -> float:
        """Return the time of a call."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(self._calls):
            self._run()
        torch.cuda.synchronize()
        return 1e6 * (time.perf_counter() - start) / self._calls


class Stopwatch(Protocol):
    """Times one call; every reading is microseconds per call.

    Attributes:
        eager: the clock of launches; None where they are in the other times already.
    """

    method: Method
    note: str
    eager: EagerClock | None

    def cold(self) -> float:
        """Time it with the cache flushed before every call."""

    def warm(self) -> float:
        """Time it with its inputs where the call before left them."""


class GraphStopwatch:
    """Replays CUDA graphs. The current stream must be a side stream: the default has no capture."""

    method: Method = "graph"
    note = ""

    def __init__(self, run: Run, flush: Run, copies: int, eager: EagerClock | None = None) -> None:
        self._copies, self.eager = copies, eager
        # A graph reads from addresses, and owns only what was allocated during its capture. What
        # these hold, such as what a backward pass saved, must not go back to the allocator.
        self._held = (run, flush)
        self._flushes = _capture((flush,), copies)
        self._flushed_runs = _capture((flush, run), copies)
        self._runs = _capture((run,), copies)

    def cold(self) -> float:
        """Return the difference of two replays, one after the other."""
        with_run = _event_time(self._flushed_runs.replay)
        return (with_run - _event_time(self._flushes.replay)) / self._copies

    def warm(self) -> float:
        """Return the time of a replay without flushes."""
        return _event_time(self._runs.replay) / self._copies


class EventStopwatch:
    """Brackets single calls with events; includes their launch, so that it flatters nobody."""

    method: Method = "events"

    def __init__(
        self, run: Run, flush: Run, note: str = "", eager: EagerClock | None = None
    ) -> None:
        self._run, self._flush, self.note, self.eager = run, flush, note, eager

    def cold(self) -> float:
        """Return the time of a call behind a flush."""
        self._flush()
        return _event_time(self._run)

    def warm(self) -> float:
        """Return the time of a call behind another."""
        self._run()
        return _event_time(self._run)


class ClockStopwatch:
    """Brackets calls with a CPU's clock, where there is no cache to flush worth the name.

    On one thread it is the process's own, which runs only while the process does: whatever else
    the machine is doing is not in it.
    """

    note = ""
    eager: EagerClock | None = None

    def __init__(self, run: Run) -> None:
        self.processor: list[float] = []  # see `Timing`; of whoever lets other processes work
        alone = torch.get_num_threads() == 1
        self._run, self._clock = run, time.process_time if alone else time.perf_counter
        self.method: Method = "processor's clock" if alone else "wall clock"

    def cold(self) -> float:
        """Return the time of a call."""
        start = self._clock()
        self._run()
        return 1e6 * (self._clock() - start)

    warm = cold


def side_stream(device: torch.device) -> torch.cuda.StreamContext:
    """Return a context with a stream of its own, as graphs need.

    The default stream cannot be captured, nor can a backward pass whose forward ran on it.
    """
    if device.type != "cuda":
        return torch.cuda.stream(None)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # for the inputs that were drawn there
    return torch.cuda.stream(stream)


def stopwatch(run: Run, device: torch.device, graphs: bool = True) -> Stopwatch:
    """Return the best stopwatch for a call on a device, after a few calls to warm up.

    A call that no CUDA graph can hold is timed with events, and its note says why.
    """
    run()
    if device.type != "cuda":
        return ClockStopwatch(run)
    for _ in range(_WARM_UPS - 1):
        run()
    flush = _flush(device)
    plain = EventStopwatch(run, flush)
    if not graphs:
        return plain
    estimate = statistics.median(plain.warm() for _ in range(_WARM_UPS))
    eager = EagerClock(run, _times(_EAGER_MICROSECONDS, estimate, _CALLS))
    try:
        return GraphStopwatch(run, flush, _times(_GRAPH_MICROSECONDS, estimate, _COPIES), eager)
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        return EventStopwatch(run, flush, str(error).partition("\n")[0], eager)


def _times(wanted: float, estimate: float, bounds: tuple[int, int]) -> int:
    """Return how many calls of a length fill a time, within bounds."""
    low, high = bounds
    return min(max(math.ceil(wanted / estimate), low), high)


def measure(
    watches: Mapping[str, Stopwatch], reference: str, rounds: int, repeats: int
) -> tuple[dict[str, Timing], float]:
    """Read every stopwatch in turn, round after round, so that no provider has the cooler device.

    Returns:
        The samples by provider, and the relative drift of `reference` from first to last round.
    """
    cold: dict[str, list[float]] = {name: [] for name in watches}
    warm: dict[str, list[float]] = {name: [] for name in watches}
    eager: dict[str, list[float]] = {name: [] for name in watches}
    for _ in range(rounds):
        for name, watch in watches.items():
            readings = [watch.cold() for _ in range(repeats)]
            cold[name] += readings
            # By a CPU's clock the two are one.
            clock = isinstance(watch, ClockStopwatch)
            warm[name] += readings if clock else [watch.warm() for _ in range(repeats)]
            if watch.eager is not None:
                eager[name] += [watch.eager.read() for _ in range(repeats)]
    timings = {
        name: Timing(
            method=watch.method,
            note=watch.note,
            cold=tuple(cold[name]),
            warm=tuple(warm[name]),
            eager=tuple(eager[name]),
            processor=tuple(watch.processor) if isinstance(watch, ClockStopwatch) else (),
        )
        for name, watch in watches.items()
    }
    # Warm readings: those of the cold are differences, whose noise is not the device's drift.
    first, last = warm[reference][:repeats], warm[reference][-repeats:]
    return timings, abs(statistics.median(last) / statistics.median(first) - 1)


def _flush(device: torch.device) -> Run:
    """Return a call that overwrites the L2 cache twice over, and at least 64 MB."""
    size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 64 * 2**20)
    buffer = torch.empty(size, dtype=torch.int8, device=device)
    return buffer.zero_


def _capture(calls: tuple[Run, ...], copies: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(copies):
            for call in calls:
                call()
    graph.replay()
    return graph


def _event_time(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1000 * float(start.elapsed_time(end))
