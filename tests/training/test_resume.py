"""A run that is stopped and started again ends with the weights of one that was not."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.stage import Stage, meta_network
from cascade.training.interrupt import PREEMPTION, Preempted, TimeIsUp
from cascade.training.report import read_log
from cascade.training.validation import Look

Run = Callable[..., Stage]
Same = Callable[[Stage, Stage], bool]
Killed = Callable[..., None]

WAYS: dict[str, dict[str, object]] = {
    "adamw": {},
    "adafactor": {"optimizer": {"name": "adafactor", "learning_rate": 1e-2, "weight_decay": 0.1}},
    "average": {"ema_decay": 0.9},
    "accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"precision": "bf16"},
    "noise of the device": {"noise": "device"},
    "falling": {"optimizer": {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 2}},
}


@pytest.mark.parametrize(
    "way", ["adamw", *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS if way != "adamw")]
)
def test_killed_and_started_again_until_it_ends(
    tmp_path: Path, run: Run, same: Same, killed_at: Killed, way: str
) -> None:
    undisturbed = run(tmp_path / "whole", **WAYS[way])
    for position in (2, 13, 15, 22):  # in steps 1, 4, 4 and 6; checkpoints are at 2, 4 and 6
        killed_at(position, tmp_path / "cut", **WAYS[way])
    assert same(run(tmp_path / "cut", **WAYS[way]), undisturbed)
    steps = [line["step"] for line in read_log(tmp_path / "cut" / "log.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_everything_that_saves_memory_at_once(
    tmp_path: Path, run: Run, same: Same, killed_at: Killed, learned: StageConfig
) -> None:
    pytest.importorskip("torchao")
    # The moments of fewer than 4096 numbers keep 32 bits.
    assert max(weight.numel() for weight in meta_network(learned).parameters()) >= 4096
    changes: dict[str, object] = {
        "steps": 4,
        "optimizer": {"name": "adamw8bit", "learning_rate": 1e-2, "weight_decay": 0.1},
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "precision": "bf16",
        "ema_decay": 0.9,
    }
    undisturbed = run(tmp_path / "whole", learned, **changes)
    killed_at(15, tmp_path / "cut", learned, **changes)  # the last step's last part
    assert same(run(tmp_path / "cut", learned, **changes), undisturbed)


@pytest.mark.slow
def test_dropout_is_drawn_from_the_step(
    tmp_path: Path, run: Run, same: Same, killed_at: Killed, stage_config: StageConfig
) -> None:
    unet = stage_config.unet.model_copy(update={"dropout": 0.3})
    stage = stage_config.model_copy(update={"unet": unet})
    undisturbed = run(tmp_path / "whole", stage)
    killed_at(13, tmp_path / "cut", stage)
    assert same(run(tmp_path / "cut", stage), undisturbed)
    assert not same(run(tmp_path / "other", stage, seed=1), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, *PREEMPTION])
def test_a_signal_saves_the_state_and_the_next_run_goes_on(
    tmp_path: Path, run: Run, same: Same, whole: Any, number: signal.Signals
) -> None:
    def send(stage: Stage, step: int) -> Look:
        if step == 2:
            signal.raise_signal(number)  # to this thread, at once
        return Look()

    rarely = {"validate_every": 1, "checkpoint_every": 5}
    signals = (signal.SIGINT, *PREEMPTION)
    before = list(map(signal.getsignal, signals))
    with pytest.raises(KeyboardInterrupt) as end:
        run(tmp_path, validate=send, **rarely)
    assert isinstance(end.value, Preempted) == (number in PREEMPTION)
    assert list(map(signal.getsignal, signals)) == before
    folders = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert folders == ["step-3"]  # the step under way when the signal came was ended
    assert same(run(tmp_path, **rarely), whole.stage)
    log = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_run_whose_time_is_up_saves_its_state_and_the_next_goes_on(
    tmp_path: Path, run: Run, same: Same, whole: Any, train_config: TrainConfig
) -> None:
    for step in range(1, 6):
        with pytest.raises(TimeIsUp, match=f"after step {step}"):
            run(tmp_path, deadline=time.monotonic(), checkpoint_every=5)
        folders = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        assert max(folders) == f"step-{step}"
        assert len(folders) == min(step, train_config.checkpoints_kept)
    # The last step ends the run, however late.
    assert same(run(tmp_path, deadline=time.monotonic(), checkpoint_every=5), whole.stage)
    log = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_a_run_within_its_time_is_not_stopped(
    tmp_path: Path, run: Run, same: Same, whole: Any
) -> None:
    assert same(run(tmp_path, deadline=time.monotonic() + 3600), whole.stage)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, run: Run) -> None:
    def send_twice(stage: Stage, step: int) -> Look:
        # Not `os.kill`: another thread might get the second one later, and end the whole worker.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return Look()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, validate=send_twice, validate_every=1, checkpoint_every=5)
    assert not (tmp_path / "checkpoints").exists()


def test_a_longer_run_goes_on_from_a_shorter_one_and_takes_no_step_twice(
    tmp_path: Path, run: Run, same: Same, whole: Any
) -> None:
    run(tmp_path, steps=3)
    assert same(run(tmp_path), whole.stage)
    log = (tmp_path / "log.jsonl").read_bytes()
    assert same(run(tmp_path), whole.stage)
    assert (tmp_path / "log.jsonl").read_bytes() == log
