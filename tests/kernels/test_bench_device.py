"""What the benchmark owes a GPU, where none is needed to see it: memory that lives, a loss told."""

import weakref
from functools import partial
from pathlib import Path

import pytest
import torch

from bench import problem, run, timing
from bench.results import OURS, Mode, Row, read_results
from cascade.errors import UserError


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


def test_a_lost_device_is_no_refusal_and_ends_the_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(
        admitted: problem.Problem, settings: run.Settings
    ) -> tuple[list[Row], dict[Mode, float]]:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    todo = run.jobs(["sampler_step"], dry_run=True)
    path = tmp_path / "results.json"
    monkeypatch.setattr(run, "_measure", breaks)
    monkeypatch.setattr(run, "_lost", lambda device: True)
    for done in (1, 2):
        with pytest.raises(UserError, match="lost the device"):
            run.bench(todo, path, run.DRY_RUN)
        held = read_results(path).cases
        assert [case.case for case in held] == [case.name for _, case in todo[:done]]
    row = held[0].find("forward", OURS)
    assert row is not None
    assert row.status == "cannot"
    assert row.reason == "AcceleratorError: an illegal memory access was encountered"


def test_an_error_that_loses_the_device_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(x: torch.Tensor) -> torch.Tensor:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    x = torch.ones(4)
    square = problem.Problem((x,), None, lambda x: x * x, {"breaks": lambda: breaks}, {})
    assert run._admit(square)[1][0].status == "cannot"
    monkeypatch.setattr(run, "_lost", lambda device: True)
    with pytest.raises(torch.AcceleratorError):
        run._admit(square)
