"""The loss on held-out pictures: of the same rows with the same noise at every look, in any run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade.config.data import DataConfig
from cascade.config.folders import read_stage_config
from cascade.config.pack import PackConfig
from cascade.config.stage import StageConfig, TextConfig
from cascade.config.train import PretrainConfig, TrainConfig, ValidationConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.choosing import Choice
from cascade.data.dataset import UnusableRecord
from cascade.data.embedding import PackEmbedding
from cascade.data.held_out import HeldOut, open_held_out
from cascade.data.opening import open_samples
from cascade.data.place import Place
from cascade.diffusion.noise import Noise, derive_seed
from cascade.errors import UserError
from cascade.packing.run import pack
from cascade.stage import Stage
from cascade.text.embed import Embedder, Share, fill
from cascade.text.prompts import PromptEncoder, load_text, open_text
from cascade.training.distributed import ALONE, Processes
from cascade.training.held_out import HeldOutLoss, read_held_out
from cascade.training.interrupt import TimeIsUp
from cascade.training.panels import TIMES
from cascade.training.pretrain import pretrain
from cascade.training.report import read_log
from cascade.training.validation import Validation

COUNT = 24
RUN = TrainConfig(steps=1, batch_size=6)
NAMES = ["val_loss", "val_loss/t0.1", "val_loss/t0.3", "val_loss/t0.5", "val_loss/t0.7"]
NAMES += ["val_loss/t0.9"]


def _array(folder: Path, side: int, seed: int = 0) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    np.save(folder / "images.npy", rng.integers(0, 256, (COUNT, 3, side, side), dtype=np.uint8))
    lines = [json.dumps([f"{noun} {i}", noun]) for i, noun in enumerate(["dog", "cat"] * 12)]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs of pictures of 16 and 32 pixels that hold out a third, one that holds out none."""
    folder = tmp_path_factory.mktemp("packs")
    for side in (16, 32):
        source = _array(folder / f"array{side}", side)
        output = folder / str(side)
        pack(PackConfig(sources=(str(source),), output=output, workers=1, held_out=0.3))
    whole = PackConfig(sources=(str(folder / "array16"),), output=folder / "whole", workers=1)
    pack(whole)
    return folder


@pytest.fixture(scope="module")
def encoder(tiny_cascade: Path) -> PromptEncoder:
    return load_text(open_text(tiny_cascade / "text", None))


def _stage(cascade: Path, name: str) -> Stage:
    return Stage.load(cascade / name)


def _held(
    config: StageConfig, data: dict[str, Any], seed: int = 0, **validation: Any
) -> HeldOut | None:
    opened = DataConfig.model_validate(data)
    samples = open_samples(opened, config, seed, 4)
    return open_held_out(ValidationConfig.model_validate(validation), opened, samples)


def _directly(stage: Stage, loss: HeldOutLoss) -> Tensor:
    """The mean squared error of v at each level, one row after another."""
    low = stage.config.low_res
    level = torch.tensor([stage.level_time(low.sampling_level)]) if low else None
    found = []
    for batch in (batch.to(torch.device("cpu")) for rows in loss.rows for batch in rows.mine):
        text = loss.prompts.rows(batch.prompts)
        for row, seed in enumerate(batch.seeds):
            x0, of_row = batch.images[row : row + 1], []
            for time in TIMES:
                noise = Noise([derive_seed(seed, "held out", str(time))])
                given = aug = None
                if batch.low_res is not None and level is not None:
                    small = batch.low_res[row : row + 1]
                    given, aug = stage.low_resolution()(small, x0.shape[-1], level, noise)
                eps = noise.normal(*x0.shape[1:])
                sigma = stage.schedule.sigma(torch.tensor([1000 * time], dtype=torch.float64))
                alpha = float((1 + sigma**2) ** -0.5)
                z = alpha * (x0 + float(sigma) * eps)
                t = torch.tensor([1000 * time])
                texts = text.embedding[row : row + 1], text.mask[row : row + 1]
                v = stage.network(z, t, *texts, given, aug)
                wanted = alpha * eps - alpha * float(sigma) * x0
                of_row.append((v - wanted).square().mean())
            found.append(torch.stack(of_row))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["base16", "sr32"])
@torch.no_grad()
def test_figures_are_the_error_of_the_prediction_at_every_level(
    packs: Path, tiny_cascade: Path, encoder: PromptEncoder, name: str
) -> None:
    stage = _stage(tiny_cascade, name)
    held = _held(stage.config, {"folder": packs / name[-2:]})
    assert held is not None
    loss = read_held_out(held, encoder, RUN, ALONE)
    figures = loss(stage)
    assert list(figures) == NAMES
    means = _directly(stage, loss).mean(dim=0)
    # The same numbers in other batches and in another order of float32 operations.
    assert list(figures.values())[1:] == pytest.approx(means.tolist(), rel=1e-4)
    assert figures["val_loss"] == pytest.approx(float(means.mean()), rel=1e-4)
    assert loss(stage) == figures


def test_rows_are_middle_crops_with_first_captions_whatever_a_run_draws(
    packs: Path, tiny_cascade: Path
) -> None:
    config = read_stage_config(tiny_cascade / "sr32")
    plain = _held(config, {"folder": packs / "32"})
    drawn = {"crop": "random", "least_scale": 0.5, "window": 3, "caption_dropout": 1.0}
    other = _held(config, {"folder": packs / "32", **drawn}, seed=7)
    assert plain is not None
    assert other is not None
    assert plain.count == other.count == len(plain.samples)
    assert 1 < plain.count < COUNT
    rows = [held.samples.rows(range(held.count)) for held in (plain, other)]
    assert torch.equal(rows[0].images, rows[1].images)
    assert rows[0].prompts == rows[1].prompts == plain.prompts
    assert rows[0].seeds == rows[1].seeds
    pictures = np.load(packs / "array32" / "images.npy")[:, :, 8:24, 8:24]
    for prompt, picture in zip(rows[0].prompts, rows[0].images, strict=True):
        assert prompt is not None
        assert np.array_equal(picture.numpy(), pictures[int(prompt.split()[1])])
    assert len(set(rows[0].prompts)) == plain.count


def test_pictures_are_held_out_of_every_set_in_its_share(packs: Path, tiny_cascade: Path) -> None:
    config = read_stage_config(tiny_cascade / "base16")
    sets = [
        {"folder": packs / "16", "weight": 3.0, "prefix": "a "},
        {"folder": packs / "whole"},
        {"folder": packs / "32", "weight": 1.0},
    ]
    held = _held(config, {"sets": sets})
    assert held is not None
    first, second = held.samples.sources
    assert (first.weight, first.prefix, second.weight) == (3.0, "a ", 1.0)
    assert all(prompt.split()[0] in ("a", "dog", "cat") for prompt in held.prompts)
    wanted = _held(config, {"sets": sets}, loss_rows=3)
    assert wanted is not None
    assert wanted.prompts == held.prompts[:3]


class Part(Processes):
    """One of several processes, asked one after another; what is put together is in `parts`."""

    parts: dict[tuple[int, int], Any]
    asked: int

    def _put(self, part: Any) -> list[Any]:
        object.__setattr__(self, "asked", self.asked + 1)
        self.parts[self.asked, self.rank] = part
        return [self.parts.get((self.asked, rank), part) for rank in range(self.world_size)]

    def all_gather(self, part: Tensor, count: int) -> Tensor:
        return torch.cat(self._put(part))[:count]

    def gathered(self, part: Any) -> list[str]:
        return [text for one in self._put(list(part)) for text in one]


SIDES = ((32, 16), (16, 32))


def _sided(folder: Path, wide: int, high: int) -> Path:
    """A pack of pictures of one size whose shards say so."""
    (folder / "photos").mkdir(parents=True)
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 256, (high, wide, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "photos" / f"{index}.png")
        (folder / "photos" / f"{index}.txt").write_text(f"a dog {index}")
    output = folder / "pack"
    pack(PackConfig(sources=(str(folder / "photos"),), output=output, workers=1, held_out=0.5))
    manifest = json.loads((output / "pack.json").read_text())
    for shard in manifest["shards"]:
        shard["aspect"] = [wide, high]
    (output / "pack.json").write_text(json.dumps(manifest))
    return output


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("shapes", ["square", "aspect"])
def test_figures_are_the_same_by_any_number_of_processes(
    tmp_path: Path, tiny_cascade: Path, encoder: PromptEncoder, world: int, shapes: str
) -> None:
    sets = [{"folder": _sided(tmp_path / f"{wide}x{high}", wide, high)} for wide, high in SIDES]
    stage = _stage(tiny_cascade, "base16")
    held = _held(stage.config, {"sets": sets, "shapes": shapes})
    assert held is not None
    whole = read_held_out(held, encoder, RUN, ALONE)
    assert len(whole.rows) == (len(SIDES) if shapes == "aspect" else 1)
    assert sum(rows.count for rows in whole.rows) == held.count > 4
    alone = whole(stage)
    parts: dict[tuple[int, int], Any] = {}
    calls = []
    for rank in [*range(world)] * 2:  # the second time each has what all have put together
        here = Part(rank, world, torch.device("cpu"))
        object.__setattr__(here, "parts", parts)
        object.__setattr__(here, "asked", 0)
        loss = read_held_out(held, encoder, RUN, here)
        together = loss(stage)
        calls.append([len(batch.images) for rows in loss.rows for batch in rows.mine])
    assert len({tuple(one) for one in calls}) == 1  # as many calls, of as many rows
    # Rows in other batches round differently.
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_damaged_picture_is_told_and_another_taken(
    packs: Path,
    tiny_cascade: Path,
    encoder: PromptEncoder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = _stage(tiny_cascade, "base16")
    held = _held(stage.config, {"folder": packs / "16"})
    assert held is not None
    damaged = held.samples.decide([0])[0].index
    pixels = CaptionedSamples.pixels

    def failing(self: CaptionedSamples, choice: Choice) -> tuple[np.ndarray, np.ndarray | None]:
        if choice.index == damaged:
            raise UnusableRecord("the checksum is another")
        return pixels(self, choice)

    monkeypatch.setattr(CaptionedSamples, "pixels", failing)
    loss = read_held_out(replace(held, count=1), encoder, RUN, ALONE)
    assert loss.rows[0].mine[0].prompts != held.prompts[:1]
    assert caplog.text.count("Another held-out picture is taken for record") == 1
    assert loss(stage)["val_loss"] > 0


def test_the_network_is_looked_at_as_it_samples(
    packs: Path, tmp_path: Path, tiny_cascade: Path, encoder: PromptEncoder
) -> None:
    stage = _stage(tiny_cascade, "base16")
    held = _held(stage.config, {"folder": packs / "16"})
    assert held is not None
    seen = []
    stage.network.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, torch.is_grad_enabled()))
    )
    stage.network.train()
    look = Validation([], tmp_path, scores=[read_held_out(held, encoder, RUN, ALONE)])(stage, 1)
    assert set(seen) == {(False, False)}
    assert list(look.figures) == NAMES
    assert look.pictures == {}


@pytest.fixture
def settings(tmp_path: Path, tiny_cascade: Path) -> Callable[..., PretrainConfig]:
    """Four steps of the tiny cascade's base, looked at every two."""

    def settings(output: str, data: dict[str, Any], **changes: Any) -> PretrainConfig:
        train = {"steps": 4, "batch_size": 2, "log_every": 4, "validate_every": 2, "ema_decay": 0.5}
        values = {
            "stage": read_stage_config(tiny_cascade / "base16").model_dump(),
            "train": {**train, **changes.pop("train", {})},
            "data": data,
            "text_encoder": tiny_cascade / "text",
            "output": tmp_path / output,
        }
        validation = {"images_per_prompt": 0, "x0_rows": 0, **changes.pop("validation", {})}
        return PretrainConfig.model_validate({**values, "validation": validation, **changes})

    return settings


def _looks(stage: Path) -> list[dict[str, float]]:
    return [line for line in read_log(stage.parent / "log.jsonl") if "val_loss" in line]


def test_a_run_tells_each_look_once_and_the_last_is_of_what_it_publishes(
    settings: Callable[..., PretrainConfig],
    packs: Path,
    encoder: PromptEncoder,
    heard: pytest.LogCaptureFixture,
) -> None:
    run = settings("run", {"folder": packs / "16"})
    with pytest.raises(TimeIsUp):
        pretrain(run, minutes=0)
    made = pretrain(run)
    looks = _looks(made)
    assert [(look["step"], look["images"]) for look in looks] == [(2, 4), (4, 8)]
    assert set(looks[0]) == {*NAMES, "step", "images", "time"}
    assert "Step 2: val_loss" in heard.text
    assert [line["step"] for line in read_log(made.parent / "log.jsonl")] == [2, 4, 4]
    stage = Stage.load(made)
    held = _held(stage.config, {"folder": packs / "16"})
    assert held is not None
    figures = read_held_out(held, encoder, run.train, ALONE)(stage)
    assert {name: looks[-1][name] for name in NAMES} == figures
    resident = settings("resident", {"folder": packs / "16", "resident": True})
    # Captions embedded in other batches, four steps.
    assert _looks(pretrain(resident))[-1]["val_loss"] == pytest.approx(
        figures["val_loss"], rel=1e-4
    )


@pytest.mark.slow
def test_what_is_learned_is_seen_in_pictures_that_were_not_trained_on(
    settings: Callable[..., PretrainConfig], tmp_path: Path
) -> None:
    for name, seed in (("trained", 1), ("held", 2)):
        folder = _array(tmp_path / name, 16, seed)
        pictures = np.random.default_rng(seed).integers(200, 216, (COUNT, 3, 16, 16))
        np.save(folder / "images.npy", pictures.astype(np.uint8))  # nearly of one colour
    often = {"steps": 60, "batch_size": 8, "validate_every": 10}
    run = settings(
        "run",
        {"folder": tmp_path / "trained"},
        validation={"data": tmp_path / "held", "loss_rows": 8},
        train={**often, "optimizer": {"learning_rate": 3e-3}},
    )
    looks = _looks(pretrain(run))
    assert len(looks) == 6
    assert looks[-1]["val_loss"] < looks[0]["val_loss"] / 2


@pytest.mark.slow
def test_data_that_hold_nothing_out_are_scored_only_if_others_are_named(
    settings: Callable[..., PretrainConfig], packs: Path
) -> None:
    whole = {"folder": packs / "whole"}
    assert _looks(pretrain(settings("whole", whole))) == []
    none = settings("none", {"folder": packs / "16"}, validation={"loss_rows": 0})
    assert _looks(pretrain(none)) == []
    refused = [
        ({"loss_rows": 3}, "loss_rows is 3 and the data hold no pictures out; pack them again"),
        ({"data": packs / "whole"}, "are those that are trained on"),
        ({"data": packs / "array32x"}, r"has no images\.npy"),
    ]
    for validation, told in refused:
        run = settings("refused", whole, validation=validation)
        with pytest.raises(UserError, match=told):
            pretrain(run)
        assert not run.output.exists()
    with pytest.raises(UserError, match="data is named and loss_rows is 0"):
        ValidationConfig(data="held", loss_rows=0)
    named = settings("named", whole, validation={"data": packs / "array32"})
    assert len(_looks(pretrain(named))) == 2


def test_captions_of_held_out_pictures_come_from_the_store_or_are_missed_beforehand(
    settings: Callable[..., PretrainConfig], packs: Path, tiny_cascade: Path, tmp_path: Path
) -> None:
    conventions = TextConfig(max_length=16, cleaning="lower")
    embedder = Embedder.open(tiny_cascade / "text", conventions, "float32", "cpu", 4)

    def looks(name: str, folder: str, **validation: Any) -> list[dict[str, float]]:
        text = {"text_encoder": None, "embeddings": tmp_path / name}
        data = {"folder": packs / folder}
        return _looks(pretrain(settings(f"run-{name}", data, validation=validation, **text)))

    held = _held(read_stage_config(tiny_cascade / "base16"), {"folder": packs / "16"})
    assert held is not None
    trained = open_samples(DataConfig(folder=packs / "16"), held.samples.stage, 0, 4).all_captions()
    captions = [caption for of_one in trained for caption in of_one]
    fill(tmp_path / "lacking", embedder, captions, share=Share(), shard_bytes=10**6)
    with pytest.raises(UserError, match="cascade embed"):
        looks("lacking", "16")
    assert not (tmp_path / "run-lacking").exists()
    every = [*captions, *held.prompts]
    fill(tmp_path / "table", embedder, every, share=Share(), shard_bytes=10**6)
    PackEmbedding.plan(
        tmp_path / "beside", embedder, [Place(str(packs / "16"), tmp_path / "cache")], "", Share()
    ).work()
    fill(tmp_path / "beside", embedder, ["a dog"], share=Share(), shard_bytes=10**6)
    table, beside = looks("table", "16"), looks("beside", "16")
    # The very embeddings, padded further.
    assert beside[-1]["val_loss"] == pytest.approx(table[-1]["val_loss"], rel=1e-4)
