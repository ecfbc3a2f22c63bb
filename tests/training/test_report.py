"""`log.jsonl`: one line a status, whole again after a crash."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.training.report import Report, read_log

Write = Callable[..., None]


@pytest.fixture
def write(stage_config: StageConfig, train_config: TrainConfig) -> Write:
    """Write statuses of a run that goes on after step `start`."""

    def write(log: Path, start: int, steps: range, shown: bool = True) -> None:
        with Report(stage_config, train_config, log.parent, start, shown) as report:
            for step in steps:
                report.advance()
                losses = {"loss": 1.0 / step, "loss/mse": 1.0 / step}
                report.status({"step": step, **losses, "images_per_second": 3.0, "mfu": 0.4})

    return write


def test_statuses_are_read_back(tmp_path: Path, write: Write) -> None:
    log = tmp_path / "log.jsonl"
    write(log, 0, range(1, 4))
    lines = read_log(log)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[1]["loss"] == 0.5
    assert all(line["images_per_second"] == 3.0 for line in lines)


def test_what_came_after_the_checkpoint_is_written_again_not_twice(
    tmp_path: Path, write: Write
) -> None:
    log = tmp_path / "log.jsonl"
    write(log, 0, range(1, 6))
    write(log, 3, range(4, 8))
    assert [line["step"] for line in read_log(log)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_line_cut_short_is_dropped_and_written_anew(tmp_path: Path, write: Write) -> None:
    log = tmp_path / "log.jsonl"
    write(log, 0, range(1, 3))
    whole = log.read_text()
    log.write_text(whole + json.dumps({"step": 3, "loss": 0.3})[:-4])
    assert [line["step"] for line in read_log(log)] == [1, 2]
    write(log, 2, range(3, 4))
    assert [line["step"] for line in read_log(log)] == [1, 2, 3]


def test_other_processes_write_nothing(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "log.jsonl", 0, range(1, 3), shown=False)
    assert list(tmp_path.iterdir()) == []
    assert read_log(tmp_path / "log.jsonl") == []  # no log is no statuses
