"""What does not fit is refused with the smallest change by which it would."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.config.machine import MachineConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.training import fitting
from cascade.training.distributed import Processes
from cascade.training.fitting import require_fit, smallest_changes
from cascade.training.parallel import is_shared
from cascade.training.plan import Plan

KEPT = {"none": 1.0, "selective": 0.6, "full": 0.2}
"""GiB of a row's activations, made up: counting them takes seconds."""

CHECKPOINTING, PASSES = "train.gradient_checkpointing", "train.gradient_accumulation_steps"
STRATEGY, OPTIMIZER, GPUS = "train.parallel.strategy", "train.optimizer.name", "machine.gpus"
FSDP = {"strategy": "fsdp"}
FOUR = [{"std": std} for std in (0.05, 0.1, 0.2, 0.25)]


def activations(stage: StageConfig, run: TrainConfig, processes: Processes, rows: int) -> int:
    around = 2 if is_shared(run.parallel, processes) else 8
    return round(2**30 * (around + rows * KEPT[run.gradient_checkpointing]))


@pytest.fixture
def stage(repository: Path, monkeypatch: pytest.MonkeyPatch) -> StageConfig:
    """A network of 4.3 billion weights, 16 GiB of each copy: 64 of them to be trained."""
    monkeypatch.setattr(fitting, "activation_bytes", activations)
    return StageConfig.read(repository / "configs" / "if-i-xl.toml")


def plan(stage: StageConfig, gpu: str, gpus: int, **changes: object) -> Plan:
    run = TrainConfig.model_validate({"steps": 1} | changes)
    machine = MachineConfig.model_validate({"gpu": gpu, "gpus": gpus})
    processes = Processes(0, gpus, torch.device("cpu"), min(gpus, 8))
    found = Plan(stage, run, machine, activations=0)
    return replace(found, activations=activations(stage, run, processes, found.rows))


@pytest.mark.parametrize(
    ("gpu", "gpus", "run", "changes"),
    [
        ("h200", 8, {"batch_size": 560}, {CHECKPOINTING: "selective"}),
        ("h200", 8, {"batch_size": 3200}, {PASSES: 8}),
        ("h200", 8, {"batch_size": 8 * 243}, {PASSES: 9}),  # 243 rows divide by three alone
        ("h200", 8, {"batch_size": 64, "averages": FOUR}, {STRATEGY: "fsdp"}),
        ("h200", 1, {"batch_size": 1, "averages": FOUR}, {"train.parallel.offload_averages": True}),
        ("h100", 8, {"batch_size": 8}, {STRATEGY: "fsdp"}),
        ("h100", 1, {"batch_size": 1}, {OPTIMIZER: "adamw8bit"}),
        ("h100", 1, {"batch_size": 64}, {STRATEGY: "fsdp", GPUS: 2}),
        ("rtx4090", 8, {"batch_size": 800, "parallel": FSDP}, {PASSES: 10}),
        ("rtx4090", 2, {"batch_size": 2, "parallel": FSDP}, {"train.parallel.offload": True}),
        ("rtx4090", 1, {"batch_size": 1}, {}),  # nothing: one row is no two processes' batch
        (
            "l40s",
            16,
            {"batch_size": 16, "parallel": {"strategy": "hsdp", "replicas": 16}},
            {"train.parallel.replicas": 8},
        ),
        (
            "rtx4090",
            4,
            {
                "batch_size": 8,
                "optimizer": {"name": "adafactor"},  # needs whole weights, as fsdp has not
            },
            {STRATEGY: "fsdp", OPTIMIZER: "adamw8bit"},
        ),
    ],
)
def test_the_smallest_change(
    stage: StageConfig, gpu: str, gpus: int, run: dict[str, Any], changes: dict[str, object]
) -> None:
    tried = plan(stage, gpu, gpus, **run)
    found = smallest_changes(tried)
    assert {change.setting: change.value for change in found} == changes
    told = "it fits with --" if changes else "no setting makes it fit"
    with pytest.raises(UserError, match=f"needs .* GiB on each of {gpus} {gpu}, .*{told}"):
        require_fit(tried)


def test_what_fits_is_not_refused(stage: StageConfig) -> None:
    require_fit(plan(stage, "h200", 8, batch_size=8))


def test_a_change_is_spelt_as_the_command_takes_it(stage: StageConfig) -> None:
    with pytest.raises(
        UserError, match=r"it fits with --set train\.parallel\.strategy=fsdp --gpus 2"
    ):
        require_fit(plan(stage, "h100", 1, batch_size=64))
    with pytest.raises(UserError, match=r"--set train\.parallel\.offload=true\."):
        require_fit(plan(stage, "rtx4090", 2, batch_size=2, parallel=FSDP))
