"""What the loop scores a row with, and what it tells of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cascade.config.stage import StageConfig
from cascade.config.train import ObjectiveConfig
from cascade.data.batch import Samples
from cascade.diffusion.denoiser import Conditioning
from cascade.diffusion.noise import Noise
from cascade.diffusion.philox import PhiloxNoise
from cascade.stage import Stage
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes
from cascade.training.loop import Losses
from cascade.training.objective import make_objective
from cascade.training.report import read_log


def test_noise_of_the_device_is_philox_of_the_rows_seeds(
    tmp_path: Path,
    run: Callable[..., Stage],
    samples: Samples,
    table: PromptTable,
    stage_config: StageConfig,
) -> None:
    run(tmp_path, steps=1, noise="device")
    stage = Stage.build(stage_config, seed=0)
    batch, text = samples.rows(range(4)), table.rows(samples.rows(range(4)).prompts)
    objective = make_objective(stage, ObjectiveConfig())
    cond = Conditioning(text.embedding, text.mask)
    losses = [
        objective(stage.denoiser, batch.images, cond, noise)["mse"].mean().item()
        for noise in (PhiloxNoise(batch.seeds, torch.device("cpu")), Noise(batch.seeds))
    ]
    assert read_log(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0] != losses[1]


def test_a_term_s_loss_is_the_mean_of_its_rows(samples: Samples) -> None:
    names = ("instance", "instance", "prior", "instance")
    batch = replace(samples.rows(range(4)), terms=names)
    losses = Losses()
    losses.add(batch, {"mse": torch.tensor([1.0, 2.0, 10.0, 6.0])})
    means = losses.means(Processes(0, 1, torch.device("cpu")))
    assert means == {"loss": 4.75, "loss/instance": 3.0, "loss/prior": 10.0}
