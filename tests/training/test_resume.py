"""A run that is stopped and started again ends with the weights of one that was not."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.config.stage import DiffusionConfig, StageConfig
from cascade.config.train import TrainConfig
from cascade.data.batch import Samples
from cascade.stage import Stage, meta_network
from cascade.training.interrupt import TimeIsUp
from cascade.training.report import read_log

Run = Callable[..., Stage]
Same = Callable[[Stage, Stage], bool]

WAYS: dict[str, dict[str, object]] = {
    "adamw": {},
    "adafactor": {"optimizer": {"name": "adafactor", "learning_rate": 1e-2, "weight_decay": 0.1}},
    "average": {"ema_decay": 0.9},
    "accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"precision": "bf16"},
    "noise of the device": {"noise": "device"},
    "falling": {"optimizer": {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 2}},
}


def _config(base: TrainConfig, changes: dict[str, object]) -> TrainConfig:
    return TrainConfig.model_validate({**base.model_dump(), **changes})


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_started_again_until_it_ends(
    tmp_path: Path,
    run: Run,
    same: Same,
    samples: Samples,
    dies_at: Callable[[int, Samples], Samples],
    killed: type[Exception],
    train_config: TrainConfig,
    way: str,
) -> None:
    config = _config(train_config, WAYS[way])
    whole = run(tmp_path / "whole", config)
    for position in (2, 13, 15, 22):  # in steps 1, 4, 4 and 6; checkpoints are at 2, 4 and 6
        with pytest.raises(killed):
            run(tmp_path / "cut", config, rows=dies_at(position, samples))
    assert same(run(tmp_path / "cut", config), whole)
    steps = [line["step"] for line in read_log(tmp_path / "cut" / "log.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_everything_that_saves_memory_at_once(
    tmp_path: Path,
    run: Run,
    same: Same,
    samples: Samples,
    dies_at: Callable[[int, Samples], Samples],
    killed: type[Exception],
    stage_config: StageConfig,
    train_config: TrainConfig,
) -> None:
    pytest.importorskip("torchao")
    # 32 channels: the moments of fewer than 4096 numbers keep 32 bits.
    unet = {"channels": (16, 32), "learned_variance": True}
    stage = stage_config.model_copy(
        update={
            "unet": stage_config.unet.model_copy(update=unet),
            "diffusion": DiffusionConfig(schedule="squared_cosine", prediction="eps"),
        }
    )
    assert max(weight.numel() for weight in meta_network(stage).parameters()) >= 4096
    changes: dict[str, object] = {
        "steps": 4,
        "optimizer": {"name": "adamw8bit", "learning_rate": 1e-2, "weight_decay": 0.1},
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "precision": "bf16",
        "ema_decay": 0.9,
    }
    config = _config(train_config, changes)
    whole = run(tmp_path / "whole", config, stage)
    with pytest.raises(killed):
        run(tmp_path / "cut", config, stage, rows=dies_at(15, samples))  # the last step's last part
    assert same(run(tmp_path / "cut", config, stage), whole)


def test_dropout_is_drawn_from_the_step(
    tmp_path: Path,
    run: Run,
    same: Same,
    samples: Samples,
    dies_at: Callable[[int, Samples], Samples],
    killed: type[Exception],
    stage_config: StageConfig,
    train_config: TrainConfig,
) -> None:
    unet = stage_config.unet.model_copy(update={"dropout": 0.3})
    stage = stage_config.model_copy(update={"unet": unet})
    whole = run(tmp_path / "whole", train_config, stage)
    with pytest.raises(killed):
        run(tmp_path / "cut", train_config, stage, rows=dies_at(13, samples))
    assert same(run(tmp_path / "cut", train_config, stage), whole)
    other = _config(train_config, {"seed": 1})
    assert not same(run(tmp_path / "other", other, stage), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_the_next_run_goes_on(
    tmp_path: Path, run: Run, same: Same, train_config: TrainConfig, number: signal.Signals
) -> None:
    def send(stage: Stage, step: int) -> None:
        if step == 2:
            signal.raise_signal(number)  # to this thread, at once

    config = _config(train_config, {"validate_every": 1, "checkpoint_every": 5})
    whole = run(tmp_path / "whole", config)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config, validate=send)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    folders = [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()]
    assert folders == ["step-3"]  # the step under way when the signal came was ended
    assert same(run(tmp_path / "cut", config), whole)
    log = read_log(tmp_path / "cut" / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_time_is_up_saves_its_state_and_the_next_goes_on(
    tmp_path: Path, run: Run, same: Same, train_config: TrainConfig
) -> None:
    config = _config(train_config, {"checkpoint_every": 5})
    whole = run(tmp_path / "whole", config)
    for step in range(1, 6):
        with pytest.raises(TimeIsUp, match=f"after step {step}"):
            run(tmp_path / "cut", config, deadline=time.monotonic())
        folders = [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()]
        assert max(folders) == f"step-{step}"
        assert len(folders) == min(step, config.checkpoints_kept)
    # The last step ends the run, however late.
    assert same(run(tmp_path / "cut", config, deadline=time.monotonic()), whole)
    log = read_log(tmp_path / "cut" / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_a_run_within_its_time_is_not_stopped(
    tmp_path: Path, run: Run, same: Same, train_config: TrainConfig
) -> None:
    timed = run(tmp_path / "timed", train_config, deadline=time.monotonic() + 3600)
    assert same(timed, run(tmp_path / "whole", train_config))


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, run: Run, train_config: TrainConfig) -> None:
    def send_twice(stage: Stage, step: int) -> None:
        # Not `os.kill`: another thread might get the second one later, and end the whole worker.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    config = _config(train_config, {"validate_every": 1, "checkpoint_every": 5})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, validate=send_twice)
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_run_takes_no_further_step(
    tmp_path: Path, run: Run, same: Same, samples: Samples, train_config: TrainConfig
) -> None:
    first = run(tmp_path, train_config)
    log = (tmp_path / "log.jsonl").read_bytes()
    assert same(run(tmp_path, train_config), first)
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_a_longer_run_goes_on_from_a_shorter_one(
    tmp_path: Path, run: Run, same: Same, train_config: TrainConfig
) -> None:
    run(tmp_path / "grown", _config(train_config, {"steps": 3}))
    grown = run(tmp_path / "grown", train_config)
    assert same(grown, run(tmp_path / "whole", train_config))
