"""Checkpoints: all or nothing, the newest few, whatever else lies beside them."""

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from cascade.config.base import read_toml
from cascade.config.folders import CONFIGS
from cascade.config.optimizer import OptimizerConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.stage import meta_network
from cascade.training.averages import Averages
from cascade.training.checkpoint import Checkpoints, remove_checkpoints
from cascade.training.distributed import ALONE
from cascade.training.optim import make_optimizer
from cascade.training.resources import require_disk
from cascade.training.state import TrainState, part_of

RUN = TrainConfig.model_validate(
    {"steps": 1, "batch_size": 1, "ema_decay": 0.5, "averages": [{"std": 0.1}]}
)
STAGE = StageConfig.parse(read_toml(CONFIGS / "if-i-m.toml"), "if-i-m")


class State:
    """A network that has taken one step, with its optimizer and its average."""

    def __init__(self, seed: int, name: str = "adamw") -> None:
        torch.manual_seed(seed)
        self.network: nn.Module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        config = OptimizerConfig.model_validate({"name": name, "weight_decay": 0.1})
        self.optimizer: Optimizer = make_optimizer(config, self.network.parameters())
        self.averages = Averages(self.network, RUN)
        self.step()

    def step(self) -> None:
        self.network(torch.ones(5, 4)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averages.update(0)

    def save(self, folder: Path, step: int, kept: int = 1) -> None:
        with Checkpoints(folder, STAGE, RUN, ALONE, kept) as checkpoints:
            checkpoints.save(step, self._state().state_dict(7 * step))

    def load(self, folder: Path) -> int:
        with Checkpoints(folder, STAGE, RUN, ALONE) as checkpoints:
            step, images = checkpoints.load(self._state())
        assert images == 7 * step
        return step

    def weights(self) -> list[torch.Tensor]:
        kept = self.averages.kept.values()
        return [*self.network.parameters(), *(value for each in kept for value in each.values())]

    def _state(self) -> TrainState:
        return TrainState(self.network, self.optimizer, self.averages)


def _equal(first: State, second: State) -> bool:
    pairs = zip(first.weights(), second.weights(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "fresh"), [("adamw", False), ("adafactor", False), ("adamw", True)]
)
def test_a_loaded_state_goes_on_as_the_saved_one(tmp_path: Path, name: str, fresh: bool) -> None:
    saved, loaded = State(0, name), State(1, name)
    if fresh:  # an optimizer that has not taken a step has no moments yet
        config = OptimizerConfig(weight_decay=0.1)
        loaded.optimizer = make_optimizer(config, list(loaded.network.parameters()))
    saved.save(tmp_path, 3)
    assert not _equal(saved, loaded)
    assert loaded.load(tmp_path) == 3
    assert _equal(saved, loaded)
    for state in (saved, loaded):
        state.step()  # the optimizer's moments and step count matter here
        state.step()
    assert _equal(saved, loaded)


def test_an_empty_or_missing_folder_is_step_zero_and_changes_nothing(tmp_path: Path) -> None:
    state, twin = State(0), State(0)
    assert state.load(tmp_path) == 0
    assert state.load(tmp_path / "missing") == 0
    assert _equal(state, twin)


def test_a_kill_between_write_and_rename_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = State(0)
    old.save(tmp_path, 2)
    newer = State(1)
    with monkeypatch.context() as patch:
        rename = Path.rename

        def killed(path: Path, target: Path) -> Path:
            if path.name.startswith(".step-"):
                raise SystemExit
            return rename(path, target)

        patch.setattr(Path, "rename", killed)
        with pytest.raises(SystemExit):
            newer.save(tmp_path, 4)
    assert _names(tmp_path) == [".step-4.partial", "step-2"]

    loaded = State(2)
    assert loaded.load(tmp_path) == 2
    assert _equal(loaded, old)

    newer.save(tmp_path, 5)
    assert _names(tmp_path) == ["step-5"]
    assert loaded.load(tmp_path) == 5
    assert _equal(loaded, newer)


def test_only_the_newest_are_kept_by_number_not_by_name(tmp_path: Path) -> None:
    state = State(0)
    for step in (8, 9, 10, 11):
        state.save(tmp_path, step, kept=2)
    assert _names(tmp_path) == ["step-10", "step-11"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_copies_part_the_state_among_them(count: int) -> None:
    whole = State(0)._state().state_dict(7)
    parts = [_flat(part_of(whole, rank, count)) for rank in range(count)]
    assert sum(map(len, parts)) == len(_flat(whole))
    joined = {name: value for part in parts for name, value in part.items()}
    assert joined.keys() == _flat(whole).keys()
    sizes = [sum(v.nbytes for v in p.values() if isinstance(v, torch.Tensor)) for p in parts]
    # What is handed out last may be the largest: the guard's norms.
    assert max(sizes) - min(sizes) <= 4 * 1000


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("step-99.bak", "step-x", "notes"):
        (tmp_path / name).mkdir()
    state = State(0)
    state.save(tmp_path, 1)
    state.save(tmp_path, 2)
    assert state.load(tmp_path) == 2
    assert _names(tmp_path) == ["notes", "step-2", "step-99.bak", "step-x"]


def test_8_bit_moments_need_less_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = 4 * sum(parameter.numel() for parameter in meta_network(STAGE).parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9 * weights))
    for name, fits in (("adamw", False), ("adamw8bit", True)):
        values = {"steps": 1, "batch_size": 1, "optimizer": {"name": name}}
        run = (STAGE, TrainConfig.model_validate(values))
        with nullcontext() if fits else pytest.raises(UserError, match="needs about"):
            require_disk(tmp_path, [run])


def _pickle_that_touches(marker: Path) -> bytes:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    return pickle.dumps(Hostile())


def _hostile_values(checkpoint: Path, marker: Path) -> None:
    """Put a pickle in place of what the optimizer keeps beside its tensors."""
    (data,) = checkpoint.glob("*.distcp")
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    content, hostile = data.read_bytes(), _pickle_that_touches(marker)
    for place, where in index.storage_data.items():
        if place.fqn.endswith(".lr"):
            where.offset, where.length = len(content), len(hostile)
    data.write_bytes(content + hostile)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


def _foreign(place: Path) -> None:
    """Put the checkpoint of another network in its place."""
    shutil.rmtree(place)
    other = State(0)
    other.network = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    other.optimizer = make_optimizer(OptimizerConfig(), other.network.parameters())
    other.averages = Averages(other.network, RUN)
    other.step()
    other.save(place.parent, int(place.name.removeprefix("step-")), kept=9)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "hostile index": lambda place, marker: (place / ".metadata").write_bytes(
        _pickle_that_touches(marker)
    ),
    "hostile values": _hostile_values,
    "index is something else": lambda place, _: (place / ".metadata").write_bytes(
        pickle.dumps([1, 2])
    ),
    "index gone": lambda place, _: (place / ".metadata").unlink(),
    "index empty": lambda place, _: (place / ".metadata").write_bytes(b""),
    "index cut": lambda place, _: os.truncate(place / ".metadata", 200),
    "weights gone": lambda place, _: (place / "__0_0.distcp").unlink(),
    "weights empty": lambda place, _: os.truncate(place / "__0_0.distcp", 0),
    "weights cut": lambda place, _: os.truncate(place / "__0_0.distcp", 3000),
    "of another network": lambda place, _: _foreign(place),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_newest_one_that_cannot_be_read_is_named_and_the_one_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    saved, marker = State(0), tmp_path / "executed"
    runs = tmp_path / "checkpoints"
    saved.save(runs, 2, kept=2)
    expected = [weight.clone() for weight in saved.weights()]
    saved.step()
    saved.save(runs, 4, kept=2)
    DAMAGE[damage](runs / "step-4", marker)

    loaded = State(1)
    assert loaded.load(runs) == 2
    assert all(map(torch.equal, loaded.weights(), expected))
    assert "step-4 cannot be read" in caplog.text
    assert not marker.exists()

    shutil.rmtree(runs / "step-2")
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read"):
        State(1).load(runs)
    assert not marker.exists()


def test_a_full_disk_is_one_sentence_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(0)
    state.save(tmp_path, 2)

    def full(value: object, *, checkpoint_id: Path, **_: object) -> None:
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.state_dict_saver.save", full)
    with pytest.raises(UserError, match=r"No space left.*the state of step 2 is kept"):
        state.save(tmp_path, 4)
    assert _names(tmp_path) == ["step-2"]


def test_all_are_removed_and_what_is_not_theirs_stays(tmp_path: Path) -> None:
    state = State(0)
    for step in (1, 2):
        state.save(tmp_path / "a", step, kept=2)
        state.save(tmp_path / "b", step, kept=2)
    (tmp_path / "a" / "notes").touch()
    (tmp_path / "b" / ".step-9.partial").mkdir()
    for name in ("a", "b", "missing"):
        remove_checkpoints(tmp_path / name)
    assert _names(tmp_path) == ["a"]
    assert _names(tmp_path / "a") == ["notes"]
