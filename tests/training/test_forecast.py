"""How long a run will take: what is added up, and a probe that leaves no trace."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from cascade.config.folders import read_stage_config
from cascade.config.stage import LowResConfig, Precision, SamplerConfig, StageConfig
from cascade.config.train import TrainConfig
from cascade.training.forecast import Probe, drawing_seconds


@pytest.fixture
def stages(tiny_cascade: Path) -> list[StageConfig]:
    """A base and a super-resolution stage."""
    return [read_stage_config(tiny_cascade / name) for name in ("base16", "sr32")]


@dataclass
class Counted:
    """A pace of one second a row; notes the rows that it was asked about."""

    rows: list[int] = field(default_factory=list)

    def step(self, stage: StageConfig, run: TrainConfig, rows: int) -> float:
        """A second a row."""
        return float(rows)

    def evaluation(self, stage: StageConfig, precision: Precision, rows: int) -> float:
        """A second a row."""
        self.rows.append(rows)
        return float(rows)


@pytest.mark.parametrize(
    ("sampler", "calls", "rows"),
    [
        ({"steps": 3, "guidance": 1.0}, 3, 4),
        ({"steps": 3, "guidance": 2.0}, 3, 8),
        ({"steps": 3, "guidance": 1.0, "name": "heun"}, 6, 4),
        ({"timesteps": (9, 5, 1, 0), "guidance": 1.0}, 4, 4),
    ],
)
def test_drawing_counts_batches_calls_and_branches(
    stages: list[StageConfig], sampler: dict[str, object], calls: int, rows: int
) -> None:
    pace, chosen = Counted(), SamplerConfig.model_validate(sampler)
    seconds = drawing_seconds(pace, stages, [chosen, chosen], 10, 4)
    assert pace.rows == [rows, rows]
    assert seconds == 2 * 3 * calls * rows  # two stages, ten pictures in three batches
    assert drawing_seconds(Counted(), stages[:1], [chosen], 2, 4) == calls * rows / 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        {"precision": "bf16", "objective": {"weighting": "min_snr"}},
    ],
)
def test_a_probe_measures_and_leaves_random_numbers_alone(
    stages: list[StageConfig], changes: dict[str, object]
) -> None:
    run = TrainConfig.model_validate({"steps": 1, "batch_size": 4, **changes})
    probe, before = Probe(torch.device("cpu")), torch.get_rng_state()
    whole = stages[1].model_copy(update={"low_res": LowResConfig(size=16)})
    for stage in (*stages, whole):
        assert probe.step(stage, run, 2) > 0
        assert probe.evaluation(stage, "fp32", 1) > 0
    assert torch.equal(torch.get_rng_state(), before)
