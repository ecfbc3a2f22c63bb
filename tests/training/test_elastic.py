"""Under `torchrun` a killed process is started anew, a preempted run is not: the same weights."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from cascade.training.interrupt import REQUEUE_MARK

PATIENCE = 120.0
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, training_file: Callable[..., Path]) -> Path:
    """The run's configuration."""
    return training_file(
        tmp_path_factory.mktemp("elastic"),
        train={
            "steps": 40,
            "batch_size": 8,
            "log_every": 1,
            "checkpoint_every": 4,
            "ema_decay": 0.9,
        },
        validation={"images_per_prompt": 0},
    )


@pytest.fixture(scope="module")
def start(config: Path) -> Iterator[Start]:
    """Start a run of two processes, which `torchrun` may start anew three times."""
    started: list[subprocess.Popen[bytes]] = []

    def start(output: Path, *flags: str, strategy: str = "ddp") -> "subprocess.Popen[bytes]":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--nproc-per-node=2", "--max-restarts=3", "--monitor-interval=0.05", *flags]
        command = [*torchrun, "-m", "cascade", "train", str(config)]
        for change in (f"output={output}", f"train.parallel.strategy={strategy}"):
            command += ["--set", change]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, env=environment))
        return started[-1]

    yield start
    for one in started:
        if one.poll() is None:
            one.terminate()
            one.wait(PATIENCE)


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The weights of a run that nothing disturbed, by its strategy."""

    @cache
    def whole(strategy: str) -> bytes:
        folder = tmp_path_factory.mktemp("whole") / "run"
        assert start(folder, strategy=strategy).wait(PATIENCE) == 0
        return _weights(folder)

    return whole


def _weights(run: Path) -> bytes:
    return (run / "stage" / "model.safetensors").read_bytes()


def _steps(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def _workers(agent: int) -> list[int]:
    """The processes that a `torchrun` has started, in their order."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    named = [(int(pid), Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in children]
    return sorted(pid for pid, command in named if b"cascade" in command)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_killed_processes_are_started_anew_and_go_on_to_the_bit(
    tmp_path: Path, start: Start, whole: Callable[[str], bytes], strategy: str
) -> None:
    run = tmp_path / "run"
    agent = start(run, strategy=strategy)
    for rank, steps in enumerate((6, 20)):
        _until(lambda steps=steps: _steps(run) >= steps)
        os.kill(_workers(agent.pid)[rank], signal.SIGKILL)
    assert agent.wait(PATIENCE) == 0
    assert _steps(run) == 40  # no step is told twice
    assert _weights(run) == whole(strategy)


@pytest.mark.dist
@pytest.mark.slow
def test_a_preempted_run_saves_and_is_not_started_anew(
    tmp_path: Path, start: Start, whole: Callable[[str], bytes]
) -> None:
    run, before = tmp_path / "run", 0
    signals = "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"
    for torchrun, number in (
        (True, signal.SIGTERM),
        (True, signal.SIGUSR1),
        (False, signal.SIGUSR1),
    ):
        agent = start(run, signals)
        _until(lambda steps=before: _steps(run) >= steps + 2)
        os.kill(agent.pid if torchrun else _workers(agent.pid)[1], number)
        assert agent.wait(PATIENCE) != 0
        before = _steps(run)
        assert (run / "checkpoints" / f"step-{before}").is_dir()
        assert (run / REQUEUE_MARK).is_dir()
    assert before < 40
    assert start(run).wait(PATIENCE) == 0
    assert not (run / REQUEUE_MARK).exists()
    assert _weights(run) == whole("ddp")
