"""`cascade train` from a folder of captioned pictures to a stage."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cascade.config.folders import read_stage_config
from cascade.config.stage import TextConfig
from cascade.config.train import PretrainConfig, ValidationConfig
from cascade.data.batch import Batch
from cascade.data.captioned import CaptionedSamples
from cascade.errors import UserError
from cascade.stage import Stage
from cascade.text.embed import Embedder, Share, fill
from cascade.training.interrupt import TimeIsUp
from cascade.training.pretrain import foretell, pretrain
from cascade.training.report import read_log

Settings = Callable[..., PretrainConfig]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten captioned pictures of 16 and of 32 pixels."""
    folder = tmp_path_factory.mktemp("datasets")
    rng = np.random.default_rng(0)
    for size in (16, 32):
        (folder / str(size)).mkdir()
        pictures = rng.integers(0, 256, (10, 3, size, size), dtype=np.uint8)
        np.save(folder / str(size) / "images.npy", pictures)
        captions = [json.dumps([f"a red {noun}", noun]) for noun in ("dog", "cat") * 5]
        (folder / str(size) / "captions.jsonl").write_text("\n".join(captions) + "\n")
    return folder


@pytest.fixture
def settings(tmp_path: Path, tiny_cascade: Path, datasets: Path) -> Settings:
    """Four steps of a stage of the tiny cascade from scratch."""

    def settings(output: str, name: str = "base16", **changes: object) -> PretrainConfig:
        config = read_stage_config(tiny_cascade / name)
        values = {
            "stage": config.model_dump(),
            "train": {"steps": 4, "batch_size": 2, "log_every": 1, "checkpoint_every": 2},
            "data": {"folder": datasets / str(config.size)},
            "text_encoder": tiny_cascade / "text",
            "validation": {"images_per_prompt": 0, "x0_rows": 0},
            "output": tmp_path / output,
        }
        return PretrainConfig.model_validate({**values, **changes})

    return settings


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("stage", ["sr32", pytest.param("base16", marks=pytest.mark.slow)])
def test_resident_data_train_the_same_stage_and_go_on_to_the_bit(
    settings: Settings, datasets: Path, stage: str
) -> None:
    train = {"steps": 4, "batch_size": 2, "log_every": 1, "noise": "device"}
    train["optimizer"] = {"learning_rate": 1e-2, "eps": 1e-2}
    data = {"folder": datasets / stage[-2:], "resident": True}
    streamed = pretrain(settings("streamed", stage, train=train))
    whole = pretrain(settings("whole", stage, train=train, data=data))
    # The same rows; captions embedded in another batch and padded further: last bits, four steps.
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (whole, streamed))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-5, msg=name)
    cut = settings("cut", stage, train=train, data=data)
    for step in (1, 2, 3):
        with pytest.raises(TimeIsUp, match=f"after step {step}"):
            pretrain(cut, minutes=0)
        assert not (cut.output / "stage").exists()
    assert _weights(pretrain(cut, minutes=60)) == _weights(whole)
    assert [line["step"] for line in read_log(cut.output / "log.jsonl")] == [1, 2, 3, 4]


def test_resident_captions_come_from_a_store(
    settings: Settings, datasets: Path, tiny_cascade: Path, tmp_path: Path
) -> None:
    fill(
        tmp_path / "store",
        Embedder.open(
            tiny_cascade / "text", TextConfig(max_length=16, cleaning="lower"), "float32", "cpu", 4
        ),
        [f"{start}{noun}" for start in ("a red ", "") for noun in ("dog", "cat")],
        share=Share(),
        shard_bytes=10**6,
    )
    changes = {"text_encoder": None, "embeddings": tmp_path / "store"}
    data = {"folder": datasets / "16", "resident": True}
    streamed, resident = (
        pretrain(settings("streamed", **changes)),
        pretrain(settings("resident", data=data, **changes)),
    )
    losses = [
        [line["loss"] for line in read_log(folder.parent / "log.jsonl")]
        for folder in (streamed, resident)
    ]
    # The very embeddings of the store, padded further.
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_resident_data_that_do_not_fit_are_refused_before_the_output_is_taken(
    settings: Settings, datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("run", data={"folder": datasets / "16", "resident": True})
    # Ten pictures of 768 bytes; four captions and the null condition, 16 tokens of 128 floats.
    needed = 10 * 3 * 16 * 16 + 5 * 16 * 128 * 4
    with monkeypatch.context() as patch:
        patch.setattr("cascade.training.resident.free_memory", lambda device: needed - 1)
        with pytest.raises(UserError, match=r"10 pictures take 0\.0 GiB.* data\.resident = false"):
            pretrain(config)
        assert not config.output.exists()
        patch.setattr("cascade.training.resident.free_memory", lambda device: needed)
        assert pretrain(config).is_dir()


@pytest.mark.parametrize("stage", ["base16", "sr32"])
def test_killed_and_started_again_it_ends_with_the_same_bytes(
    settings: Settings, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain(settings("whole", stage))
    rows = CaptionedSamples.rows
    for last in (1, 7):

        def dying(self: CaptionedSamples, positions: Sequence[int], last: int = last) -> Batch:
            if last in positions:
                raise Killed
            return rows(self, positions)

        with monkeypatch.context() as patch:
            patch.setattr(CaptionedSamples, "rows", dying)
            with pytest.raises(Killed):
                pretrain(settings("cut", stage))
        assert not (whole.parent.parent / "cut" / "stage").exists()
    cut = pretrain(settings("cut", stage))
    assert _weights(cut) == _weights(whole)
    log = read_log(cut.parent / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4]


def test_a_finished_run_has_published_its_stage_and_is_not_trained_again(
    settings: Settings,
) -> None:
    config = settings("run")
    folder = pretrain(config)
    stage = Stage.load(folder)
    assert stage.config == config.stage
    assert stage.fingerprint() != Stage.build(config.stage, config.train.seed).fingerprint()
    assert not (config.output / "checkpoints").exists()
    log, weights = (folder.parent / "log.jsonl").read_bytes(), _weights(folder)
    pretrain(config)
    assert (folder.parent / "log.jsonl").read_bytes() == log
    assert _weights(folder) == weights
    with pytest.raises(UserError, match=r"other settings.*train\.steps is 4 there and 9 now"):
        pretrain(settings("run", train={"steps": 9, "batch_size": 2}))


@pytest.mark.slow
def test_a_run_of_constant_rate_is_made_longer_to_the_bit(settings: Settings) -> None:
    def steps(count: int, **more: object) -> dict[str, object]:
        kept = {"batch_size": 2, "checkpoint_every": 2, "keep_checkpoints": True}
        return {"steps": count, **kept, **more}

    whole = _weights(pretrain(settings("whole", train=steps(6))))
    assert _weights(pretrain(settings("grown", train=steps(4)))) != whole
    assert _weights(pretrain(settings("grown", train=steps(6)))) == whole
    with pytest.raises(UserError, match=r"train\.steps is 6 there and 4 now"):
        pretrain(settings("grown", train=steps(4)))

    falling = {"optimizer": {"schedule": "linear"}}
    pretrain(settings("falling", train=steps(4, **falling)))
    with pytest.raises(UserError, match=r"train\.steps is 4 there and 6 now.*initial_weights"):
        pretrain(settings("falling", train=steps(6, **falling)))


def test_what_saves_memory_or_tells_more_may_change(settings: Settings) -> None:
    folder = pretrain(settings("run"))
    weights = _weights(folder)
    base = {"steps": 4, "batch_size": 2}
    for change in (
        {"gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
        {"checkpoint_every": 1, "checkpoints_kept": 7, "log_every": 3},
        {"kernels": "reference"},
    ):
        pretrain(settings("run", train={**base, **change}))
    pretrain(settings("run", encoder_mode="bfloat16", validation={"prompts": ["a dog"]}))
    assert _weights(folder) == weights


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_weights_that_draw_nothing_finite_are_not_published(
    settings: Settings, rate: float
) -> None:
    absurd = {"steps": 1, "batch_size": 2, "optimizer": {"learning_rate": 1.0}}
    run = settings("run", train=absurd)
    optimizer = run.train.optimizer.model_copy(update={"learning_rate": rate})
    run = run.model_copy(update={"train": run.train.model_copy(update={"optimizer": optimizer})})
    with pytest.raises(UserError, match=r"is not published.*\(the state of step 1 is kept\)"):
        pretrain(run)
    assert not (run.output / "stage").exists()


def test_it_goes_on_from_a_stages_weights(settings: Settings, tiny_cascade: Path) -> None:
    still = {"steps": 1, "batch_size": 1, "optimizer": {"learning_rate": 1e-30}}
    config = settings("on", train=still, initial_weights=tiny_cascade / "base16")
    trained, given = Stage.load(pretrain(config)), Stage.load(tiny_cascade / "base16")
    for name, value in given.network.state_dict().items():
        torch.testing.assert_close(
            trained.network.state_dict()[name], value, rtol=0, atol=2e-30, msg=name
        )


def test_validation_draws_its_prompts_and_rows(settings: Settings, tiny_cascade: Path) -> None:
    train = {"steps": 2, "batch_size": 1, "validate_every": 2}
    validation = {"prompts": ["a dog"], "images_per_prompt": 2, "x0_rows": 3}
    validation["cascade"] = str(tiny_cascade)
    folder = pretrain(settings("run", "sr32", train=train, validation=validation))
    drawn = folder.parent.rglob("*.png")
    sizes = {path.relative_to(folder.parent).as_posix(): Image.open(path).size for path in drawn}
    assert sizes == {
        "samples/step-000002.png": (66, 66),
        "cascade/step-000002.png": (66, 66),
        "x0/step-000002.png": (6 * 18 - 2, 6 * 18 - 2),  # crops of 16 pixels
    }


def test_a_cascade_that_does_not_fit_is_refused_before_the_output_is_taken(
    settings: Settings, tiny_cascade: Path
) -> None:
    values = settings("run", "sr32").stage.model_dump()
    values["low_res"] |= {"size": 8, "crop": None}
    validation = {"cascade": str(tiny_cascade)}
    config = settings("run", "sr32", stage=values, validation=validation)
    with pytest.raises(UserError, match="'sr32' enlarges 8 pixels and none makes what it enlarge"):
        pretrain(config)
    assert not config.output.exists()
    with pytest.raises(UserError, match="a cascade is named and images_per_prompt is 0"):
        ValidationConfig(cascade="mini", images_per_prompt=0)


@pytest.mark.parametrize(("every", "drawn"), [(None, [3]), (2, [2, 3])])
def test_the_first_pictures_captions_are_drawn_at_the_end(
    settings: Settings, every: int | None, drawn: list[int]
) -> None:
    train = {"steps": 3, "batch_size": 1, "validate_every": every}
    folder = pretrain(settings("run", train=train, validation={"images_per_prompt": 3}))
    paths = sorted((folder.parent / "samples").iterdir())
    assert [path.name for path in paths] == [f"step-{step:06d}.png" for step in drawn]
    with Image.open(paths[-1]) as grid:
        assert grid.size == (3 * 16 + 2 * 2, 16)


def test_what_is_told_beforehand_leaves_nothing(
    settings: Settings, heard: pytest.LogCaptureFixture
) -> None:
    config = settings("run")
    foretell(config)
    told = heard.text
    assert re.search(r"steps +4\b", told)
    assert re.search(r"batch +2 of 10 pictures", told)
    assert "in all on cpu" in told
    assert not config.output.exists()


def test_the_variance_is_dropped_or_the_word_refused(settings: Settings) -> None:
    train = {"steps": 1, "batch_size": 1, "objective": {"variance": "drop"}}
    with pytest.raises(UserError, match="'base16' has no learned variance to drop"):
        pretrain(settings("refused", train=train))
    assert not settings("refused").output.exists()
    values = settings("run").stage.model_dump()
    values["unet"]["learned_variance"] = True
    values["diffusion"] = {"schedule": "squared_cosine", "prediction": "eps"}
    values["sampler"]["variance"] = "learned"
    stage = Stage.load(pretrain(settings("run", stage=values, train=train)))
    assert not stage.config.unet.learned_variance
    assert stage.config.sampler.variance == "fixed_small"
