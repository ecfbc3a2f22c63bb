"""TensorBoard and W&B are told each step once, and what they lack is told before any work."""

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.training import trackers
from cascade.training.report import Report
from cascade.training.trackers import check_trackers

Tell = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep W&B from whatever this machine has told it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))


@pytest.fixture
def telling(
    tmp_path: Path, stage_config: StageConfig, train_config: TrainConfig
) -> Callable[[str], Tell]:
    """Tell a tracker of a run's steps: a status each, and a look at every second one."""

    def telling(name: str) -> Tell:
        wandb = {"mode": "offline"}
        changes = {"trackers": (name,), "wandb": wandb, "logging_dir": "board"}
        run = TrainConfig.model_validate({**train_config.model_dump(), **changes})
        picture = Image.new("RGB", (6, 4), (200, 0, 0))

        def tell(start: int, *parts: range) -> None:
            with Report(stage_config, run, tmp_path / "run", start, shown=True) as report:
                for place, steps in enumerate(parts):
                    if place:
                        report.rewind(steps[0] - 1)
                    for step in steps:
                        values = {"step": step, "loss": 1 / step, "loss/t0": 2 / step}
                        report.status({**values, "images_per_second": 3.0})
                        if step % 2 == 0:
                            report.figures(
                                {"step": step, "images": 4 * step}, {"val_loss": 3 / step}
                            )
                            report.pictures(step, {"samples": picture})

        return tell

    return telling


# From the checkpoint of step 3, in another process or in the same.
GOING_ON = [[(0, range(1, 6)), (3, range(4, 8))], [(0, range(1, 6), range(4, 8))]]


@pytest.mark.parametrize("calls", GOING_ON, ids=["resumed", "rolled back"])
def test_tensorboard_has_each_step_once(
    telling: Callable[[str], Tell], tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    tell = telling("tensorboard")
    for call in calls:
        tell(*call)
    events = EventAccumulator(str(tmp_path / "run" / "board" / "base8"))
    events.Reload()
    for name, factor in (("loss", 1), ("loss/t0", 2)):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({step: factor / step for step in range(1, 8)})
        assert len(events.Scalars(name)) == 7
    looks = {event.step: event.value for event in events.Scalars("val_loss")}
    assert looks == pytest.approx({step: 3 / step for step in (2, 4, 6)})
    assert [(image.step, image.width) for image in events.Images("samples")] == [
        (2, 6),
        (4, 6),
        (6, 6),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("calls", GOING_ON, ids=["resumed", "rolled back"])
def test_wandb_offline_has_each_step_once(
    telling: Callable[[str], Tell], tmp_path: Path, calls: list[tuple[Any, ...]]
) -> None:
    pytest.importorskip("wandb")
    tell = telling("wandb")
    for call in calls:
        tell(*call)
        _next_second()
    records = _written(tmp_path)
    (run,) = {record.run.run_id for record in records if record.HasField("run")}
    history = [record.history for record in records if record.HasField("history")]
    assert [one.step.num for one in history] == list(range(1, 8))
    found: dict[str, dict[int, float]] = {"loss": {}, "val_loss": {}}
    for one in history:
        for item in one.item:
            name = item.key or "/".join(item.nested_key)
            if name in found:
                found[name][one.step.num] = float(item.value_json)
    assert found["loss"] == pytest.approx({step: 1 / step for step in range(1, 8)})
    assert found["val_loss"] == pytest.approx({step: 3 / step for step in (2, 4, 6)})
    pictures = sorted((tmp_path / "run").glob("wandb/offline*/files/media/images/samples_*.png"))
    assert [path.name.split("_")[1] for path in pictures] == ["2", "4", "6"]
    tell(0, range(1, 2))  # begun anew
    anew = {record.run.run_id for record in _written(tmp_path)} - {"", run}
    assert len(anew) == 1


def _next_second() -> None:
    """Wait: W&B names a run's folder by the second that it begins in."""
    now = time.time()
    time.sleep(1 - now % 1)


def _written(folder: Path) -> list[Any]:
    """Read W&B's files in their order; its own process may still write when a run has finished."""
    end = time.monotonic() + 60
    while True:
        files = sorted((folder / "run").glob("wandb/offline-run-*/*.wandb"))
        read = [list(_records(file)) for file in files]
        if all(any(record.HasField("exit") for record in records) for records in read):
            return [record for records in read for record in records]
        assert time.monotonic() < end, "W&B has written no end of a run"
        time.sleep(0.05)


def _records(path: Path) -> Iterator[Any]:
    """Read W&B's file: a header of 7 bytes, then LevelDB's log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no room for the head of a part
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return  # it is being written
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_told(
    name: str, train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_config.model_copy(update={"trackers": (name,)})
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"pip install 'dreamcascade\[{name}\]'"):
        check_trackers(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "environment", "told"),
    [
        ({}, {}, "W&B has no key on this machine; give one with 'wandb login', set"),
        ({"mode": "online"}, {"WANDB_MODE": "offline"}, "has no key"),
        ({}, {"WANDB_API_KEY": "short"}, "cannot be reached with its key .*40"),
        ({}, {"WANDB_MODE": "offline"}, None),
        ({}, {"WANDB_MODE": "disabled"}, None),
        ({"mode": "offline"}, {}, None),
    ],
)
def test_wandb_needs_a_key_where_it_is_online(
    settings: dict[str, str],
    environment: dict[str, str],
    told: str | None,
    train_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("wandb")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    values = {**train_config.model_dump(), "trackers": ("wandb",), "wandb": settings}
    run = TrainConfig.model_validate(values)
    if told is None:
        check_trackers(run, tmp_path / "run")
    else:
        with pytest.raises(UserError, match=told):
            check_trackers(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told(train_config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    changes = {"trackers": ("tensorboard",), "logging_dir": tmp_path / "file" / "logs"}
    run = train_config.model_copy(update=changes)
    with pytest.raises(UserError, match="Nothing can be written into"):
        check_trackers(run, tmp_path / "run")
