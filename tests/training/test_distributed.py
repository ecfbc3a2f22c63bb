"""Two processes see the rows that one would and end with its weights."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cascade.config.train import PretrainConfig
from cascade.training.pretrain import pretrain
from cascade.training.report import read_log


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, training_file: Callable[..., Path]) -> Path:
    """A configuration of `cascade train`, the same for every test but for its output."""
    train = {
        "steps": 4,
        "batch_size": 8,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "log_every": 1,
        "checkpoint_every": 2,
        "optimizer": {"learning_rate": 1e-2, "eps": 1e-2},
    }
    folder = tmp_path_factory.mktemp("config")
    held = training_file(folder / "held").parent / "data-base16"
    pictures = np.load(held / "images.npy")
    np.save(held / "images.npy", 255 - pictures)  # others than those that are trained on
    return training_file(folder, train=train, validation={"data": str(held), "loss_rows": 7})


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


SHARED = (
    "data.resident=true",
    "train.noise=device",
    "train.parallel.strategy=fsdp",
    "train.validate_every=2",
    "train.keep_checkpoints=true",
)
"""Everything that a network in parts has to go through: it is sampled from, resumed, published."""


@pytest.fixture(scope="module")
def shared(two: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes that share the network, from resident data."""
    folder = tmp_path_factory.mktemp("shared") / "two"
    assert two(folder, SHARED) == 0
    return folder


@pytest.fixture(scope="module")
def streamed(two: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of two copies of the network, from streamed data."""
    folder = tmp_path_factory.mktemp("streamed") / "two"
    assert two(folder, ()) == 0
    return folder


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", ["streamed", "shared"])
def test_two_processes_are_one(
    tmp_path: Path, config: Path, request: pytest.FixtureRequest, name: str
) -> None:
    together_in: Path = request.getfixturevalue(name)
    changes = SHARED if name == "shared" else ()
    one = pretrain(PretrainConfig.read(config, [f"output={tmp_path / 'one'}", *changes]))

    told = [read_log(folder / "log.jsonl") for folder in (tmp_path / "one", together_in)]
    looks = [[line for line in log if "val_loss" in line] for log in told]
    assert [line["step"] for line in looks[1]] == ([2, 4] if name == "shared" else [4])
    for alone, together in zip(*looks, strict=True):
        # Each of seven rows once; weights that differ in their last bits, as below.
        for figure in ("val_loss", "val_loss/t0.1", "val_loss/t0.9"):
            assert together[figure] == pytest.approx(alone[figure], rel=1e-4)
    logs = [[line for line in log if "loss" in line] for log in told]
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
def test_a_checkpoint_in_parts_is_the_stage_that_was_published(
    tmp_path: Path, shared: Path, command: Callable[..., Any]
) -> None:
    made = command("checkpoint", "consolidate", shared, "--output", tmp_path / "made")
    assert made.status == 0
    assert "its weights are 'decay-0.9'" in made.out
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "made" / name).read_bytes() == (shared / "stage" / name).read_bytes()
    assert (shared / "samples" / "step-000002.png").is_file()


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_whose_time_is_up_go_on_to_the_bit(
    tmp_path: Path, two: Callable[..., int], shared: Path
) -> None:
    cut = tmp_path / "cut"
    assert two(cut, SHARED, "--minutes", "0") != 0
    assert [path.name for path in (cut / "checkpoints").iterdir()] == ["step-1"]
    assert two(cut, SHARED) == 0
    weights = [(folder / "stage" / "model.safetensors").read_bytes() for folder in (cut, shared)]
    assert weights[0] == weights[1]
