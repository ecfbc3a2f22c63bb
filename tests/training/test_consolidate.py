"""Stages made of checkpoints, and averages made after the run."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade.errors import UserError
from cascade.stage import Stage
from cascade.training.averages import exponent
from cascade.training.consolidate import average_afterwards, consolidate, fitted

Run = Callable[..., Stage]
Same = Callable[[Stage, Stage], bool]

SETTINGS: dict[str, object] = {
    "ema_decay": 0.9,
    "averages": [{"std": 0.05}, {"std": 0.1}],
    "snapshot_every": 1,
}


@pytest.fixture(scope="module")
def averaged(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Stage]:
    """A run with averages and snapshots, and what it publishes."""
    folder = tmp_path_factory.mktemp("averaged")
    return folder, run(folder, **SETTINGS)


def test_a_checkpoint_becomes_the_stage_that_the_run_publishes(
    tmp_path: Path, averaged: tuple[Path, Stage], run: Run, same: Same
) -> None:
    folder, published = averaged
    assert consolidate(folder, tmp_path / "newest") == "decay-0.9"
    assert same(Stage.load(tmp_path / "newest"), published)
    assert (
        consolidate(folder / "checkpoints" / "step-6", tmp_path / "named", "weights") == "weights"
    )
    assert same(Stage.load(tmp_path / "named"), run(tmp_path / "plain"))
    with pytest.raises(UserError, match=r"holds no 'std-1'; take one of decay-0.9, std-0.05, std"):
        consolidate(folder, tmp_path / "other", "std-1")
    with pytest.raises(UserError, match="holds no checkpoint"):
        consolidate(tmp_path, tmp_path / "other")
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "checkpoints" / "step-6" / ".metadata").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        consolidate(tmp_path / "damaged", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_of_a_width_that_was_kept_it_is_the_one_that_was_kept(
    tmp_path: Path, averaged: tuple[Path, Stage]
) -> None:
    folder, _ = averaged
    assert average_afterwards(folder, 0.1, tmp_path / "made") < 1e-6
    consolidate(folder, tmp_path / "kept", "std-0.1")
    made, kept = (Stage.load(tmp_path / name) for name in ("made", "kept"))
    for ours, theirs in zip(made.network.parameters(), kept.network.parameters(), strict=True):
        # Twelve shares, of which one is 1 and the others vanish but for rounding.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_of_another_width_it_is_the_one_that_a_run_would_have_kept() -> None:
    def weight(step: int) -> float:
        return math.log(1 + step) + math.sin(step / 40)

    def average(std: float, steps: int) -> float:
        power, value = exponent(std) + 1, 0.0
        for step in range(steps):
            decay = (step / (step + 1)) ** power
            value = decay * value + (1 - decay) * weight(step + 1)
        return value

    snapshots = [(step, std) for step in range(100, 801, 100) for std in (0.05, 0.1)]
    shares, error = fitted([(step, exponent(std)) for step, std in snapshots], 800, exponent(0.07))
    made = sum(
        share * average(std, step) for share, (step, std) in zip(shares, snapshots, strict=True)
    )
    wanted = average(0.07, 800)
    assert error < 0.02
    # What is fitted are smooth weightings, those of the run have steps.
    gap = min(abs(wanted - average(std, 800)) for std in (0.05, 0.1))
    assert abs(made - wanted) < gap / 20


def test_the_shares_of_a_kept_one_are_itself() -> None:
    snapshots = [(step, exponent(std)) for step in (10, 20, 30) for std in (0.05, 0.1)]
    shares, error = fitted(snapshots, 30, exponent(0.1))
    assert np.allclose(shares, [0, 0, 0, 0, 0, 1], atol=1e-6)
    assert error < 1e-6
    assert fitted(snapshots, 30, exponent(0.2))[1] > fitted(snapshots, 30, exponent(0.08))[1]


def test_long_runs_stay_within_the_range_of_numbers() -> None:
    snapshots = [(step * 10_000, exponent(0.01)) for step in range(1, 250)]
    shares, error = fitted(snapshots, 2_490_000, exponent(0.02))
    assert np.isfinite(shares).all()
    assert error < 0.2


def test_without_snapshots_nothing_can_be_made(tmp_path: Path, whole: object) -> None:
    with pytest.raises(UserError, match="holds no snapshots; train with averages of a std"):
        average_afterwards(tmp_path, 0.1, tmp_path / "made")
