"""Two processes see the rows that one would and end with its weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cascade.cli.console import Status
from cascade.config.folders import read_stage_config
from cascade.config.train import PretrainConfig
from cascade.training.pretrain import pretrain
from cascade.training.report import read_log

CONFIG = """
text_encoder = "{text}"
output = "{output}"
data.folder = "{data}"

[train]
steps = 4
batch_size = 8
gradient_accumulation_steps = 2
ema_decay = 0.9
log_every = 1
checkpoint_every = 2
optimizer = {{ learning_rate = 1e-2, eps = 1e-2 }}

[stage]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_cascade: Path) -> Path:
    """A configuration of `cascade train`, the same for every test but for its output."""
    folder = tmp_path_factory.mktemp("config")
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    np.save(data / "images.npy", rng.integers(0, 256, (10, 3, 16, 16), dtype=np.uint8))
    (data / "captions.jsonl").write_text('["a dog", "a cat on the beach"]\n' * 10)
    text = CONFIG.format(text=tiny_cascade / "text", output=folder / "none", data=data)
    stage = read_stage_config(tiny_cascade / "base16").model_dump(mode="json", exclude_none=True)
    lines = [f"{name} = {_toml(value)}" for name, value in stage.items()]
    path = folder / "config.toml"
    path.write_text(text + "\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture(scope="module")
def two(config: Path, repository: Path) -> Callable[..., int]:
    """Train into a folder in two processes or more; returns the exit status of torchrun."""

    def two(output: Path, changes: Iterable[str], *arguments: str, world: int = 2) -> int:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, f"--nproc-per-node={world}", "-m", "cascade", "train", str(config)]
        sets = [word for change in (f"output={output}", *changes) for word in ("--set", change)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, *sets, *arguments], env=environment, timeout=300
        ).returncode

    return two


RESIDENT = ("data.resident=true", "train.noise=device")


@pytest.fixture(scope="module")
def resident(two: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes from resident data that nothing disturbed."""
    folder = tmp_path_factory.mktemp("resident") / "two"
    assert two(folder, RESIDENT) == 0
    return folder


@pytest.fixture(scope="module")
def streamed(two: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same from streamed data."""
    folder = tmp_path_factory.mktemp("streamed") / "two"
    assert two(folder, ()) == 0
    return folder


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", ["streamed", "resident"])
def test_two_processes_are_one(
    tmp_path: Path, config: Path, request: pytest.FixtureRequest, name: str
) -> None:
    together_in: Path = request.getfixturevalue(name)
    changes = RESIDENT if name == "resident" else ()
    one = pretrain(PretrainConfig.read(config, [f"output={tmp_path / 'one'}", *changes]))

    logs = [read_log(folder / "log.jsonl") for folder in (tmp_path / "one", together_in)]
    assert [line["step"] for line in logs[1]] == [1, 2, 3, 4]
    for alone, together in zip(*logs, strict=True):
        # The same rows summed in another order, in single precision, for a few steps.
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
        assert together["images"] == alone["images"]
        assert "slowest_rank" not in alone
        assert together["slowest_rank"] in (0, 1)
        assert together["slowest_ratio"] >= 1 > 0 < together["step_seconds"]
    weights = [load_file(folder / "model.safetensors") for folder in (one, together_in / "stage")]
    for parameter, value in weights[0].items():
        # A step moves a weight by up to 1e-2; the sums differ in their last bits.
        torch.testing.assert_close(weights[1][parameter], value, rtol=0, atol=2e-5)


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_whose_time_is_up_go_on_to_the_bit(
    tmp_path: Path, two: Callable[..., int], resident: Path
) -> None:
    cut = tmp_path / "cut"
    assert two(cut, RESIDENT, "--minutes", "0") != 0
    assert [path.name for path in (cut / "checkpoints").iterdir()] == ["step-1"]
    assert two(cut, RESIDENT) == 0
    weights = [(folder / "stage" / "model.safetensors").read_bytes() for folder in (cut, resident)]
    assert weights[0] == weights[1]


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("world", [3, 4])
def test_more_processes_go_on_to_the_bit(
    tmp_path: Path, two: Callable[..., int], world: int
) -> None:
    """Of two numbers the sum has no order; of three it has."""
    changes = ("train.batch_size=12", "train.gradient_accumulation_steps=1")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert two(whole, changes, world=world) == 0
    for status in (Status.TIME_IS_UP, 0):
        minutes = ("--minutes", "0") if status else ()
        # torchrun tells a failed process's status as its own 1.
        assert bool(two(cut, changes, *minutes, world=world)) == bool(status)
    weights = [(folder / "stage" / "model.safetensors").read_bytes() for folder in (whole, cut)]
    assert weights[0] == weights[1]
