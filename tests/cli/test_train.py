"""`cascade train`: what stops it, and what is no part of its settings."""

import json
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


@pytest.mark.slow
def test_a_plan_needs_a_stage_and_no_data(
    command: Command, tmp_path: Path, tiny_cascade: Path, toml: Callable[..., str]
) -> None:
    file = tmp_path / "stage.toml"
    stage = json.loads((tiny_cascade / "base16" / "config.json").read_text())
    file.write_text(toml(stage))
    told = command("train", file, "--plan", "--gpus", 16, "--gpu", "a100-40gb", "--json")
    assert told.status == 0
    assert "have no [train]: planned are 1000 steps of one picture on each GPU" in told.err
    plan = json.loads(told.out)
    assert (plan["machine"]["gpus"], plan["train"]["batch_size"]) == (16, 16)
    parts = plan["gpu_memory_bytes"]
    total, available = parts.pop("total"), parts.pop("available")
    assert (sum(parts.values()), available) == (total, 40 * 2**30)
    # A run's file may hold what a plan has no use for; that need not be there.
    run = {"stage": stage, "train": {"steps": 5, "batch_size": 6}, "data": {"folder": "nowhere"}}
    file.write_text(toml({**run, "output": "nowhere"}))
    shown = command("train", file, "--plan", "--gpus", 2, "--set", "train.parallel.strategy=fsdp")
    assert shown.status == 0
    assert "base16 on 2 h200, fsdp" in shown.out
    assert "5 steps of 6, 3 a pass" in shown.out
    refused = command("train", file, "--plan", "--gpus", 1, "--workspace", "1.0")
    assert refused.status == 2
    assert "no setting makes it fit" in refused.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--gpus", 4), "--gpus belongs to a plan; add --plan"),
        (("--json",), "--json belongs to a plan; add --plan"),
        (("--plan", "--dry-run"), "give one of them"),
        (("--plan", "--gpus", 3), "does not divide into 3 processes"),
        (("--plan", "--gpus", 0), "--gpus"),
        (("--plan", "--gpu", "h300"), "h300"),
        (("--plan", "--set", "train.step=5"), "'train.step"),
        (("--plan", "--log", "nowhere"), "nowhere"),
    ],
)
def test_what_is_no_plan_is_refused(
    command: Command, repository: Path, given: tuple[object, ...], message: str
) -> None:
    refused = command("train", repository / CONFIG, *given)
    assert refused.status == 2
    assert message in refused.err
