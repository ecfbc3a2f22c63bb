"""Settings that cannot work together are refused where they are read."""

import math
from pathlib import Path

import pytest

from cascade.config.dreambooth import AUGMENTATIONS
from cascade.config.folders import CascadeManifest
from cascade.config.recipes import RECIPES
from cascade.config.serve import ServeConfig
from cascade.config.stage import StageConfig
from cascade.config.train import PretrainConfig, TrainConfig
from cascade.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("base64", "stage.unet.low_res=true", r"\[low_res\] and unet.low_res belong together"),
        ("base64", "stage.low_res.size=16", "belong together"),
        ("sr256", "stage.size=250", "250 is no multiple of low_res.size 64"),
        ("sr256", "stage.low_res.crop=66", "crop must be a multiple of 8 and <= 256"),
        ("sr256", "stage.low_res.crop=264", "crop must be a multiple of 8 and <= 256"),
        ("base64", "stage.sampler.variance='learned'", "needs unet.learned_variance = true"),
        ("base64", "stage.unet.learned_variance=true", "needs a discrete schedule"),
        ("base64", "stage.sampler.timesteps=[1, 2]", "strictly descending"),
        ("base64", "stage.sampler.timesteps=[1001, 2]", "strictly descending"),
        ("base64", "stage.sampler.timesteps=[]", "strictly descending"),
        ("base64", "stage.sampler.timesteps=[5.05, 5]", "0.1 apart"),
        ("base64", "stage.sampler.steps=1001", "stage.sampler.steps"),
        ("base64", "stage.name='../up'", "stage.name"),
        ("base64", "stage.unet.blocks=[1]", "one value for each level"),
        ("base64", "stage.unet.resample='residual'", "is there already"),
        ("base64", "train.gradient_accumulation_steps=3", "must be a multiple"),
        ("base64", "train.optimizer.betas=[0.9, 1.0]", r"train.optimizer.betas.1: .*less"),
        ("base64", "train.ema_decay=1.0", "train.ema_decay"),
        ("base64", "data.caption_dropout=1.5", "data.caption_dropout"),
        ("sr256", "stage.low_res.sampling_level={value=1.5}", "sampling_level.value"),
        ("sr256", "stage.low_res.sampling_level={value=1.0,unit='variance'}", "less than 1"),
        ("sr256", "stage.low_res={size=64,align_corners=true,crop=64}", "align_corners = false"),
        ("base64", "stage.size=66", "size 66 must be a multiple of the network's 8"),
        ("base64", "stage.unet.text_norm='group'", "set text.masked = false"),
        ("base64", "stage.unet.blocks=[10000000, 1, 1]", "stage.unet.blocks.0: must be less"),
        ("base64", "stage.unet.channels=[64, 64, 64, 64, 64, 64, 64, 64, 64]", "at most 8 items"),
    ],
)
def test_impossible_settings(config: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        PretrainConfig.read(CONFIGS / f"mini-{config}.toml", [override])
    assert "Value error" not in str(caught.value)


@pytest.mark.parametrize("limit", ["waiting", "waiting_per_client"])
def test_a_server_has_room_for_the_largest_request_that_it_takes(limit: str) -> None:
    assert ServeConfig.parse({"limits": {limit: 10}}, "a test").limits.pictures == 10
    with pytest.raises(UserError, match="10 pictures and never finds room for them; raise"):
        ServeConfig.parse({"limits": {limit: 9}}, "a test")


def test_calls_made_at_a_time_have_pictures_and_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cascade.config.serve.cores", lambda: 8)
    with pytest.raises(UserError, match="3 calls at a time need as many pictures; raise at_once"):
        ServeConfig.parse({"batch": {"calls": 3}}, "a test")
    for batch, engines, threads in (
        ({}, {}, None),
        ({}, {"threads": 3}, 3),
        ({"calls": 3, "at_once": 4}, {}, 2),
        ({"calls": 9, "at_once": 9}, {}, 1),
        ({"calls": 2}, {"threads": 3}, 3),
    ):
        assert ServeConfig.parse({"batch": batch, "engines": engines}, "a test").threads == threads


def test_a_discrete_schedule_ends_at_999() -> None:
    with pytest.raises(UserError, match="end at 999 on a discrete schedule"):
        StageConfig.read(CONFIGS / "if-i-m.toml", ["sampler.timesteps=[1000, 2]"])


def test_a_learned_variance_has_a_discrete_schedule() -> None:
    config = StageConfig.read(CONFIGS / "if-i-m.toml")
    assert config.unet.learned_variance
    assert config.sampler.variance == "learned"
    with pytest.raises(UserError, match="discrete schedule"):
        StageConfig.read(CONFIGS / "if-i-m.toml", ["diffusion.schedule=cosine"])


def test_a_cascade_has_a_stage_and_a_known_format() -> None:
    with pytest.raises(UserError, match="stages"):
        CascadeManifest.parse({"name": "x", "stages": []}, "cascade.json")
    with pytest.raises(UserError, match="format"):
        CascadeManifest.parse({"name": "x", "stages": ["a"], "format": 2}, "cascade.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ["base", "../evil"]}, r"stages\.1: must be one plain name .* not '\.\./evil'"),
        ({"stages": ["/etc"]}, r"stages\.0: must be one plain name"),
        ({"stages": ["."]}, r"stages\.0: must be one plain name"),
        ({"stages": ["a\0b"]}, r"stages\.0: must be one plain name"),
        ({"stages": ["a\n"]}, r"stages\.0: must be one plain name"),
        ({"stages": [""]}, r"stages\.0: must be one plain name"),
        ({"stages": ["base", "base"]}, "'base' is named twice"),
        ({"stages": ["text"]}, "'text' is named twice"),
        ({"stages": "base"}, "stages: must be a list, not 'base'"),
        ({"stages": [3]}, "stages.0: must be a valid string, not 3.$"),
        ({"text_encoder": "../text"}, "text_encoder: must be the name of a folder"),
        ({"text_encoder": "/a\0b"}, "text_encoder: must be the name of a folder"),
        ({"text_encoder": ""}, "text_encoder: must be the name of a folder"),
    ],
)
def test_names_in_a_manifest_are_folders_of_the_cascade(
    change: dict[str, object], message: str
) -> None:
    values = {"name": "x", "stages": ["base"]} | change
    with pytest.raises(UserError, match=message):
        CascadeManifest.parse(values, "cascade.json")


@pytest.mark.parametrize("encoder", ["text", "T5.v1_1-xl", str(Path("/models/IF I/text_encoder"))])
def test_a_text_encoder_is_beside_the_stages_or_anywhere(encoder: str) -> None:
    values = {"name": "x", "stages": ["base"], "text_encoder": encoder}
    assert CascadeManifest.parse(values, "cascade.json").text_encoder == encoder


def test_a_checkpoint_of_one_subject_is_read() -> None:
    values = StageConfig.read(CONFIGS / "if-i-m.toml").model_dump(exclude={"subjects"})
    held = {"identifier": "sec", "class_noun": "dog"}
    assert StageConfig.parse(values | {"subject": None}, "config.json").subjects == ()
    (subject,) = StageConfig.parse(values | {"subject": held}, "config.json").subjects
    assert (subject.identifier, subject.class_noun) == ("sec", "dog")
    with pytest.raises(UserError, match="'subject' is not a setting"):
        StageConfig.parse(values | {"subject": held, "subjects": [held]}, "config.json")


def test_the_paper_s_recipe_has_the_paper_s_numbers() -> None:
    paper = RECIPES["paper"]
    assert paper.prior is not None
    assert paper.prior.weight == 1.0  # lambda
    assert paper.prior.images == 1000
    assert paper.prior.sampler is not None
    assert paper.prior.sampler.name == "ancestral"
    assert paper.augmentation == "dreambooth"
    for run in (paper.base, paper.super_resolution):
        assert run.optimizer.learning_rate == 1e-5
        assert run.steps == 1000
        assert run.batch_size == 1  # one photo and one class image


def test_the_small_recipe_is_short_and_keeps_the_paper_s_prior() -> None:
    mini = RECIPES["mini"]
    assert mini.prior is not None
    assert mini.prior.weight == 1.0
    assert mini.prior.sampler is not None
    assert mini.prior.sampler.steps <= 20
    assert mini.prior.images <= 200
    assert isinstance(mini.base, TrainConfig)


def test_deepfloyd_s_recipe_has_the_numbers_known_to_work() -> None:
    recipe = RECIPES["deepfloyd"]
    base, upper = recipe.base, recipe.super_resolution
    assert (base.optimizer.learning_rate, base.batch_size, base.steps) == (1e-7, 4, 150)
    assert (upper.optimizer.learning_rate, upper.batch_size, upper.steps) == (5e-6, 12, 2000)
    assert upper.gradient_accumulation_steps == 6
    assert recipe.prior is not None
    assert recipe.prior.weight == 1.0
    assert recipe.prior.images == base.batch_size * base.steps  # each is seen once
    assert recipe.prior.sampler is None  # the checkpoint's own
    assert CascadeManifest(name="if", stages=("a",), recipe="deepfloyd").recipe in RECIPES


def test_augmentations_carry_the_supplement_s_variances() -> None:
    for name, variance in (("dreambooth-reference", 1e-3), ("dreambooth", 1e-5)):
        augmentation = AUGMENTATIONS[name]  # type: ignore[index]
        assert augmentation.sampling is not None
        for level in (*augmentation.training, augmentation.sampling):
            assert level.value == variance
            assert level.unit == "variance"
    imagen = AUGMENTATIONS["imagen"]
    assert [level.value for level in imagen.training] == [0.0, 1.0]
    assert imagen.sampling is None


def test_noise_in_grey_levels() -> None:
    from cascade.info.folder import noise_in_grey_levels

    # A unit normal over pictures that span 2 is half of the 255 levels.
    assert noise_in_grey_levels(1.0) == 127.5
    assert math.isclose(noise_in_grey_levels(1e-3), 4.03, abs_tol=0.01)
    assert math.isclose(noise_in_grey_levels(1e-5), 0.40, abs_tol=0.01)
