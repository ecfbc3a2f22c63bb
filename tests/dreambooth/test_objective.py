"""The loss of a DreamBooth step, computed a second time from the papers' formulas."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.config.train import ObjectiveConfig, TrainConfig
from cascade.data.batch import Batch
from cascade.data.stream import Stream
from cascade.diffusion.denoiser import Conditioning
from cascade.diffusion.noise import Noise
from cascade.dreambooth.batches import Concept, DreamBoothSamples
from cascade.stage import Stage
from cascade.text.encoder import TextEncoder
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes
from cascade.training.loop import train
from cascade.training.objective import make_objective
from cascade.training.report import read_log
from cascade.training.weights import StoredWeights

LAMBDA = 0.3


@pytest.fixture(scope="module")
def table(tiny_cascade: Path) -> PromptTable:
    encoder = TextEncoder.load(tiny_cascade / "text")
    config = Stage.load(tiny_cascade / "base16").config
    return PromptTable.build(encoder, ["a zug dog", "a dog"], config.text)


def _samples(stage: Stage, photos: Path) -> DreamBoothSamples:
    from cascade.data.images import read_photos

    images = read_photos(photos).images
    kinds = (
        Concept("instance", images[:2], ("a zug dog",)),
        Concept("prior", images[2:], ("a dog",), weight=LAMBDA),
    )
    return DreamBoothSamples(stage.config, kinds, seed=5)


def _row_loss(stage: Stage, table: PromptTable, batch: Batch, row: int) -> Tensor:
    """||v_hat(z_t, t, c) - v||^2 of one row, its timestep and noise drawn from its own seed."""
    stream = np.random.default_rng(batch.seeds[row])

    def uniform() -> Tensor:
        return torch.tensor(stream.random(), dtype=torch.float64)

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(stream.standard_normal(tuple(shape), dtype=np.float32))

    x0 = batch.images[row]
    extra: list[Tensor] = []
    if batch.low_res is not None:
        low, high = (
            stage.level_time(level) for level in stage.config.low_res.training_levels
        )  # the level first, then the small picture's noise
        level = low + (high - low) * uniform()
        angle = level * math.pi / 2
        noise = normal(batch.low_res.shape[1:])
        small = angle.cos().float() * batch.low_res[row] + angle.sin().float() * noise
        enlarged = torch.nn.functional.interpolate(
            small[None], x0.shape[-2:], mode="bicubic", align_corners=False
        )
        extra = [enlarged, (1000 * level)[None].float()]
    u = uniform()
    eps = normal(x0.shape)
    alpha, sigma = (u * math.pi / 2).cos().float(), (u * math.pi / 2).sin().float()
    text = table.rows(batch.prompts[row : row + 1])
    z = (alpha * x0 + sigma * eps)[None]
    v = stage.network(z, 1000 * u[None].float(), text.embedding, text.mask, *extra)[0]
    return (v - (alpha * eps - sigma * x0)).square().mean()


@pytest.mark.parametrize("name", ["base16", "sr32"])
def test_the_loss_is_mean_instance_plus_lambda_mean_prior(
    tmp_path: Path, tiny_cascade: Path, photos: Path, table: PromptTable, name: str
) -> None:
    twin = Stage.load(tiny_cascade / name)
    samples = _samples(twin, photos)
    config = TrainConfig(steps=1, batch_size=3, log_every=1)
    alone = Processes(0, 1, torch.device("cpu"))
    weights = StoredWeights(tiny_cascade / name)
    train(twin.config, weights, Stream(samples), table, config, tmp_path, alone)

    batch = samples.rows(range(3))
    with torch.no_grad():
        rows = [float(_row_loss(twin, table, batch, row)) for row in range(6)]
    instance, prior = sum(rows[:3]) / 3, sum(rows[3:]) / 3
    status = read_log(tmp_path / "log.jsonl")[0]
    # Single precision; the loss is computed as a difference of x0 divided by sigma.
    assert status["loss/instance"] == pytest.approx(instance, rel=1e-4)
    assert status["loss/prior"] == pytest.approx(prior, rel=1e-4)
    assert status["loss"] == pytest.approx(instance + LAMBDA * prior, rel=1e-4)


@pytest.mark.parametrize("name", ["base16", "sr32"])
def test_a_masked_row_is_the_weighted_mean_of_its_pixels(
    tiny_cascade: Path, photos: Path, table: PromptTable, name: str
) -> None:
    stage = Stage.load(tiny_cascade / name)
    objective = make_objective(stage, ObjectiveConfig())
    batch = _samples(stage, photos).rows(range(2))
    text = table.rows(batch.prompts)
    cond = Conditioning(text.embedding, text.mask, batch.low_res)

    def losses(weights: Tensor | None) -> Tensor:
        with torch.no_grad():
            noise = Noise(batch.seeds)
            return objective(stage.denoiser, batch.images, cond, noise, weights).terms["mse"]

    ones, plain = torch.ones_like(batch.images[:, :1]), losses(None)
    assert torch.equal(losses(ones), plain)
    left = ones.clone()
    left[..., 8:] = 0
    # The two halves' parts are the whole; one row's weights leave the others alone.
    torch.testing.assert_close(losses(left) + losses(ones - left), plain)
    mixed = torch.cat([left[:1], ones[1:]])
    torch.testing.assert_close(losses(mixed), torch.cat([losses(left)[:1], plain[1:]]))


def test_every_row_has_its_own_timestep_and_noise(
    tiny_cascade: Path, photos: Path, table: PromptTable
) -> None:
    stage = Stage.load(tiny_cascade / "base16")
    batch = _samples(stage, photos).rows(range(4))
    streams = Noise(batch.seeds)
    assert len(set(streams.uniform().tolist())) == 8
    noise = streams.normal(3, 16, 16)
    correlation = torch.corrcoef(noise.flatten(1)) - torch.eye(8)
    assert correlation.abs().max() < 0.2  # 768 values: five standard deviations of 1/sqrt(768)
