"""Early ends of a run: what ends it among processes, and what `torchrun` must not start anew."""

import signal
import socket
import time
from pathlib import Path

import pytest

from cascade.cli.console import EarlyEnd, Status, resumable
from cascade.training.interrupt import (
    PREEMPTION,
    REQUEUE_MARK,
    Interrupts,
    Preempted,
    Stop,
    TimeIsUp,
    clear_requeue,
)

ENDS: dict[Status, BaseException] = {
    Status.REQUEUE: Preempted(leaves=True),
    Status.TIME_IS_UP: TimeIsUp(3),
    Status.INTERRUPTED: KeyboardInterrupt(),
}


@pytest.fixture
def restarts(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Stand for a process that `torchrun` has started for the first time."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    return monkeypatch


def _ended(run_dir: Path, end: BaseException | None) -> Status | None:
    """Run something that ends in some way; return its status, None if it did its work."""
    try:
        with resumable(run_dir):
            if end is not None:
                raise end
    except EarlyEnd as early:
        return early.status
    return None


@pytest.mark.parametrize("status", ENDS)
def test_what_ended_early_under_torchrun_is_not_started_anew_by_it(
    tmp_path: Path, restarts: pytest.MonkeyPatch, status: Status
) -> None:
    assert _ended(tmp_path, ENDS[status]) == status
    marked = status is not Status.INTERRUPTED  # nobody wants that again
    assert (tmp_path / REQUEUE_MARK / socket.gethostname()).is_file() == marked
    restarts.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert _ended(tmp_path, None) == (status if marked else None)
    with restarts.context() as another:  # a machine that stays goes on without the one that left
        another.setattr(socket, "gethostname", lambda: "another")
        assert _ended(tmp_path, None) is None
    with restarts.context() as later:
        later.setenv("TORCHELASTIC_RUN_ID", "later")
        assert _ended(tmp_path, None) is None
    restarts.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert _ended(tmp_path, None) is None
    clear_requeue(tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_who_leaves_marks_its_machine_and_only_under_torchrun(
    tmp_path: Path, restarts: pytest.MonkeyPatch
) -> None:
    assert _ended(tmp_path, Preempted()) == Status.REQUEUE
    restarts.delenv("TORCHELASTIC_RUN_ID")
    assert _ended(tmp_path, Preempted(leaves=True)) == Status.REQUEUE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", PREEMPTION)
def test_a_preemption_outweighs_an_interrupt_and_the_time(number: signal.Signals) -> None:
    with Interrupts(deadline=time.monotonic()) as interrupts:
        assert interrupts.wanted() is Stop.TIME
        signal.raise_signal(signal.SIGINT)
        assert interrupts.wanted() is Stop.INTERRUPT
        signal.raise_signal(number)
        assert interrupts.wanted() is Stop.PREEMPTION
        own, other = interrupts.end(Stop.PREEMPTION, 1), Interrupts().end(Stop.PREEMPTION, 1)
    assert isinstance(own, Preempted)
    assert own.leaves
    assert isinstance(other, Preempted)
    assert not other.leaves
