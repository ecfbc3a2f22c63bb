"""`cascade train`: what stops it, and what is no part of its settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.cli.console import Status
from cascade.config.train import PretrainConfig
from cascade.training.interrupt import TimeIsUp

Command = Callable[..., Any]
CONFIG = "configs/mini-base64.toml"


def test_a_run_whose_time_is_up_has_a_status_of_its_own_and_says_how_to_go_on(
    command: Command, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[tuple[PretrainConfig, float | None]] = []

    def pretrain(config: PretrainConfig, minutes: float | None) -> Path:
        received.append((config, minutes))
        if minutes is not None:
            raise TimeIsUp(step=7)
        return Path("some/stage")

    monkeypatch.setattr("cascade.training.pretrain.pretrain", pretrain)
    stopped = command("train", repository / CONFIG, "--set", "train.steps=900", "--minutes", "1.5")
    assert stopped.status == Status.TIME_IS_UP == 3
    assert "up after step 7; the same command goes on from here" in stopped.err
    assert "train.ema_decay: 0.999 is not reached in 900 steps: " in stopped.err
    ended = command("train", repository / CONFIG, "--set", "train.steps=900")
    assert ended.status == 0
    assert ended.out.startswith("The trained stage is in some/stage, after ")
    (first, minutes), (second, none) = received
    assert (minutes, none) == (1.5, None)
    assert first == second  # so that the same output folder takes both
    assert command("train", repository / CONFIG, "--minutes", "-1").status == 2
