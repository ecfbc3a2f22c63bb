"""What the loop scores a row with, and what it tells of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cascade.config.stage import StageConfig
from cascade.config.train import ObjectiveConfig
from cascade.data.batch import Batch
from cascade.data.stream import Samples
from cascade.diffusion.denoiser import Conditioning
from cascade.diffusion.noise import Noise
from cascade.diffusion.objective import RowLosses
from cascade.diffusion.philox import PhiloxNoise
from cascade.stage import Stage
from cascade.text.packed import PackedTexts
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes
from cascade.training.losses import Losses, batch_text, row_losses
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
        objective(stage.denoiser, batch.images, cond, noise).terms["mse"].mean().item()
        for noise in (PhiloxNoise(batch.seeds, torch.device("cpu")), Noise(batch.seeds))
    ]
    assert read_log(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0] != losses[1]


def test_a_loss_is_the_mean_of_its_rows_by_term_and_by_quarter(samples: Samples) -> None:
    names = ("instance", "instance", "prior", "instance")
    batch = replace(samples.rows(range(4)), terms=names)
    losses = Losses()
    timesteps = torch.tensor([0.0, 249.9, 250.0, 1000.0], dtype=torch.float64)
    losses.add(batch, RowLosses({"mse": torch.tensor([1.0, 2.0, 10.0, 6.0])}, timesteps))
    alone = Processes(0, 1, torch.device("cpu"))
    assert losses.means(alone) == {
        "loss": 4.75,
        "loss/instance": 3.0,
        "loss/prior": 10.0,
        "loss/t0": 1.5,
        "loss/t1": 10.0,
        "loss/t3": 6.0,  # there was no row of the third
    }
    losses.clear()
    parts = {"mse": torch.ones(4), "vb": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    losses.add(batch, RowLosses(parts, timesteps))
    losses.add(batch, RowLosses({"mse": torch.zeros(4), "vb": torch.zeros(4)}, timesteps * 0))
    means = losses.means(alone)
    assert (means["loss/mse"], means["loss/vb"]) == (0.5, 1.25)
    assert (means["loss/t0"], means["loss/t1"], means["loss/t3"]) == (5 / 6, 4.0, 5.0)


def test_micro_batches_of_other_rows_are_added_by_name(samples: Samples) -> None:
    losses, time = Losses(), torch.zeros(4, dtype=torch.float64)
    for count, terms in ((4, ("mse",) * 4), (2, ("mse", "prior"))):
        batch = replace(samples.rows(range(count)), terms=terms)
        parts = {"mse": torch.ones(count), "vb": torch.full((count,), float(count))}
        losses.add(batch, RowLosses(parts, time[:count]))
    means = losses.means(Processes(0, 1, torch.device("cpu")))
    # A part of every row's loss goes before a term of the same name: of the rows of one kind.
    assert means == {
        "loss": (5 + 3) / 2,
        "loss/mse": 1.0,
        "loss/vb": (16 + 4) / 6,
        "loss/prior": 3.0,
        "loss/t0": (20 + 6) / 6,
    }


@pytest.mark.parametrize("terms", [("mse",), ("instance", "prior")])
def test_quarters_are_those_of_the_drawn_timesteps(
    tmp_path: Path, run: Callable[..., Stage], samples: Samples, terms: tuple[str, ...]
) -> None:
    class Terms:
        def rows(self, positions: Sequence[int]) -> Batch:
            batch = samples.rows(positions)
            return replace(batch, terms=tuple(sorted(terms * 4)[: len(batch.terms)]))

    run(tmp_path, rows=Terms(), stratified=True, steps=2)  # a row a quarter
    for status in read_log(tmp_path / "log.jsonl"):
        quarters = [status[f"loss/t{place}"] for place in range(4)]
        assert status["loss"] == pytest.approx(sum(quarters) / 4, rel=1e-6)
        assert len(set(quarters)) == 4


@pytest.mark.parametrize("captions", [("a dog", None, "two cats", None), ("a dog",), (None, None)])
def test_texts_that_come_with_a_batch_give_the_losses_of_a_table(
    samples: Samples, stage_config: StageConfig, captions: tuple[str | None, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {
        "a dog": torch.randn(3, 16, generator=generator).bfloat16(),
        "two cats": torch.randn(5, 16, generator=generator).bfloat16(),
    }
    null = torch.randn(4, 16, generator=generator).bfloat16()
    table = PromptTable({None: null, **rows})
    # A source of the null text alone: nothing else may be looked up in it.
    nothing = PromptTable({None: null})
    batch = replace(samples.rows(range(len(captions))), prompts=captions)
    texts = PackedTexts.pack([None if text is None else rows[text] for text in captions], 16)
    beside = replace(batch, texts=texts).to(torch.device("cpu"))
    assert torch.equal(batch_text(beside, nothing).mask, batch_text(batch, table).mask)
    stage = Stage.build(stage_config, seed=0)
    objective = make_objective(stage, ObjectiveConfig())
    losses = [
        row_losses(stage.denoiser, objective, one, source, Noise(batch.seeds), tokens=12)
        for one, source in ((beside, nothing), (batch, table))
    ]
    assert torch.equal(losses[0].terms["mse"], losses[1].terms["mse"])
    assert losses[0].terms["mse"].isfinite().all()


@pytest.mark.gpu
def test_texts_that_come_with_a_batch_are_padded_on_a_gpu_as_on_the_host(samples: Samples) -> None:
    null = PromptTable({None: torch.ones(2, 16)})
    texts = PackedTexts.pack([torch.rand(3, 16).bfloat16(), None, torch.rand(5, 16).bfloat16()], 16)
    batch = replace(samples.rows(range(3)), texts=texts)
    there, here = batch_text(batch.to(torch.device("cuda")), null), batch_text(batch, null)
    assert there.embedding.is_cuda
    assert torch.equal(there.embedding.cpu(), here.embedding)
    assert torch.equal(there.mask.cpu(), here.mask)
