"""Ours and theirs on one shape: first the answers, then time and memory."""

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cascade_bench.timing import EventStopwatch
from peers.networks import Inputs, Mode, Precision, Provider, Run, Shape, call, step

Watch = Callable[[], float]

OURS, THEIRS = "ours", "diffusers"


class MismatchError(Exception):
    """Two providers answered differently; no times are taken."""


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        shape: network and size.
        rows: pictures in the batch.
        mode: without gradients, or forward and backward.
        precision: of the arithmetic.
    """

    shape: Shape
    rows: int
    mode: Mode
    precision: Precision

    @property
    def name(self) -> str:
        """For people."""
        size = self.shape.size
        return f"{self.shape.name}, {size}x{size}, batch {self.rows}, {self.mode}, {self.precision}"


def compare(
    case: Case, providers: Mapping[str, Provider], given: Inputs, rounds: int
) -> dict[str, Any]:
    """Check and measure one case.

    Args:
        case: what is run.
        providers: by name, `OURS` and `THEIRS` among them.
        given: at least as many rows as the case has.
        rounds: in which every provider is timed once, one after the other.

    Returns:
        A record: times in milliseconds by provider, their ratio to `THEIRS` round by round, peak
        memory above the weights in bytes, and errors relative to diffusers in float64. A provider
        that the device's memory does not hold has a note instead.

    Raises:
        MismatchError: an error is more than twice that of diffusers in the same precision.
    """
    given = given.rows(case.rows)
    errors = answers(case, providers, given)
    rows: dict[str, dict[str, Any]] = {}
    watches: dict[str, Watch] = {}
    for name, provider in providers.items():
        try:
            network = provider.prepared(case.mode, case.precision)
            run = step(network, given, case.mode, case.precision)
            run()
            rows[name] = {"error": errors[name], "peak_bytes": peak_bytes(run, given.x.device)}
            watches[name] = _watch(run, given.x.device)
        except torch.OutOfMemoryError:
            rows[name] = {"error": errors[name], "note": "out of memory"}
    samples: dict[str, list[float]] = {name: [] for name in watches}
    for _ in range(rounds):
        for name, watch in watches.items():
            samples[name].append(watch())
    theirs = samples.get(THEIRS)
    for name, times in samples.items():
        rows[name] |= {"milliseconds": times, "images_per_second": _rate(case.rows, times)}
        if theirs:
            rows[name]["ratio"] = _spread([a / b for a, b in zip(times, theirs, strict=True)])
    parameters = sum(p.numel() for p in providers[THEIRS].network.parameters())
    return {
        "shape": case.shape.name,
        "size": case.shape.size,
        "parameters": parameters,
        "batch": case.rows,
        "mode": case.mode,
        "precision": case.precision,
        "providers": rows,
    }


def answers(case: Case, providers: Mapping[str, Provider], given: Inputs) -> dict[str, float]:
    """Errors relative to diffusers in float64, of one row.

    Raises:
        MismatchError: one is more than twice that of diffusers.
    """
    few = given.rows(1)
    exact = _exact(providers[THEIRS].network, few)
    errors = {}
    for name, provider in providers.items():
        network = provider.prepared("sampling", case.precision)
        out = step(network, few, "sampling", case.precision)()
        errors[name] = float((out.double() - exact).norm() / exact.norm())
    # Two sums of the same numbers differ by a few roundings whatever theirs happens to be.
    limit = 2 * errors[THEIRS] + 4 * torch.finfo(torch.float32).eps
    wrong = [name for name, error in errors.items() if not error <= limit]
    if wrong:
        raise MismatchError(
            f"{case.name}: the relative error of {wrong[0]} is {errors[wrong[0]]:.2g}, that of "
            f"diffusers {errors[THEIRS]:.2g}"
        )
    return errors


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most that a call has allocated at once, beside what was there before it.

    On a CPU, from the profiler's log of PyTorch's allocator: the scratch of oneDNN and MKL is not
    in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        log.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = [event["args"] for event in events if event.get("name") == "[memory]"]
    before = held[0]["Total Allocated"] - held[0]["Bytes"]
    return int(max(args["Total Allocated"] for args in held) - before)


def _exact(network: nn.Module, given: Inputs) -> Tensor:
    with torch.no_grad():
        return call(copy.deepcopy(network).double(), given.to(torch.float64))


def _watch(run: Run, device: torch.device) -> Watch:
    """Milliseconds of a call; on a CPU the process's own, whatever else the machine is doing."""
    if device.type == "cuda":
        events = EventStopwatch(run, flush=lambda: None)
        return lambda: events.warm() / 1000

    def own() -> float:
        start = time.process_time()
        run()
        return 1000 * (time.process_time() - start)

    return own


def _rate(rows: int, times: list[float]) -> float:
    return 1000 * rows / statistics.median(times)


def _spread(values: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return {"median": statistics.median(values), "p20": fifths[0], "p80": fifths[-1]}
