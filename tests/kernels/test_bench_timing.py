"""What a benchmark's clocks and scales owe, where no GPU is needed to see it."""

import importlib.util
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cascade_bench import timing
from cascade_bench.measuring import peak_bytes
from cascade_bench.timing import ClockStopwatch, measure

CPU = torch.device("cpu")


def test_stopwatches_take_turns() -> None:
    order: list[str] = []
    watches = {name: ClockStopwatch(lambda name=name: order.append(name)) for name in ("a", "b")}
    timings, drift = measure(watches, "a", rounds=2, repeats=1)
    assert order == ["a", "b"] * 2
    assert {name: len(timing.cold) for name, timing in timings.items()} == {"a": 2, "b": 2}
    assert drift >= 0


def test_an_eager_call_is_timed_until_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten launches of 1 ms and a device that is done 5 ms behind the last are 1.5 ms each."""
    now, waits = [0.0], []

    def launch() -> None:
        now[0] += 0.001

    def synchronize() -> None:
        waits.append(now[0])
        now[0] += 0.005

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    watch = ClockStopwatch(launch)
    monkeypatch.setattr(watch, "eager", timing.EagerClock(launch, calls=10))
    timings, _ = measure({"a": watch, "b": ClockStopwatch(launch)}, "b", rounds=2, repeats=2)
    assert timings["a"].eager == pytest.approx([1500.0] * 4)
    assert len(waits) == 2 * 4  # before the first launch and after the last, and never between
    assert timings["b"].eager == ()  # on a CPU the one clock is all


def test_what_a_graph_reads_lives_as_long_as_its_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next capture empties the allocator's cache: a replay would find no memory there."""
    monkeypatch.setattr(timing, "_capture", lambda calls, copies: None)
    saved, buffer = torch.ones(1), torch.ones(1)
    alive = weakref.ref(saved), weakref.ref(buffer)
    watch = timing.GraphStopwatch(partial(torch.neg, saved), buffer.zero_, copies=4)
    del saved, buffer
    assert None not in [tensor() for tensor in alive]
    del watch
    assert [tensor() for tensor in alive] == [None, None]


def test_peak_memory_is_what_is_alive_at_once() -> None:
    layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    x = torch.randn(1024, 256)

    def run() -> Tensor:
        with torch.no_grad():
            return layers(x)  # type: ignore[no-any-return]

    assert peak_bytes(run, CPU) == 2 * x.nbytes


@pytest.mark.parametrize("there", [True, False])
def test_what_runs_kernels_is_marked_for_a_gpu_where_there_is_one(
    there: bool, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = repository / "tests" / "kernels" / "conftest.py"
    spec = importlib.util.spec_from_file_location("kernels_conftest", file)
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    marked: list[str] = []
    items = [
        SimpleNamespace(fixturenames=names, add_marker=lambda mark: marked.append(mark.name))
        for names in (["kernel_device"], ["tmp_path"])
    ]
    conftest.pytest_collection_modifyitems(items)
    assert marked == (["gpu"] if there else [])
