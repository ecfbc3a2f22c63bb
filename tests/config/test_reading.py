"""Settings are read from TOML, overridden by --set, and a slip of the pen is named."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cascade.config.base import apply_override, read_toml
from cascade.config.dreambooth import Recipe
from cascade.config.folders import read_stage_file
from cascade.config.optimizer import OptimizerConfig
from cascade.config.recipes import RECIPES, recipe_of
from cascade.config.stage import StageConfig
from cascade.config.train import PretrainConfig
from cascade.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MINI = CONFIGS / "mini-sr256.toml"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_project_parses(path: Path) -> None:
    stage = read_stage_file(path)
    assert stage.name == path.stem.removeprefix("mini-")
    if not path.stem.startswith("if-"):
        assert PretrainConfig.read(path).stage == stage
    assert StageConfig.parse(stage.model_dump(mode="json"), "itself") == stage
    assert stage.size % stage.unet.factor == 0


def test_the_dreambooth_of_a_large_base_divides_among_its_gpus() -> None:
    changes = read_toml(CONFIGS / "dreambooth" / "if-i-xl.toml")["recipe"]
    recipe = recipe_of("mini", changes)
    for run in (recipe.base, recipe.super_resolution):
        assert run.parallel.strategy == "fsdp"
        assert run.batch_size % (8 * run.gradient_accumulation_steps) == 0


def test_no_configuration_is_left_out() -> None:
    assert len(list(CONFIGS.glob("mini-*.toml"))) == 2
    assert len(list(CONFIGS.glob("*.toml"))) == 13


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.stepz=3", "'train.stepz' is not a setting .did you mean 'steps'"),
        ("stage.unet.chanels=[1]", "'stage.unet.chanels' .*did you mean 'channels'"),
        ("stage.low_res.upsampel='x'", "did you mean 'upsample'"),
        ("qqq=1", "'qqq' is not a setting .known are data, .*initial_weights, .*output"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        PretrainConfig.read(MINI, [override])


def test_an_unknown_key_inside_a_list_of_tables_names_the_nearest() -> None:
    levels = "stage.low_res.training_levels=[{valeu=0.1}, {value=0.2}]"
    with pytest.raises(UserError, match=r"did you mean 'value'\?"):
        PretrainConfig.read(MINI, [levels])


def test_every_mistake_is_told_at_once_in_one_sentence() -> None:
    with pytest.raises(UserError) as caught:
        PretrainConfig.read(MINI, ["train.steps=0", "data.flop=true"])
    message = str(caught.value)
    assert "train.steps" in message
    assert "did you mean 'flip'?" in message
    assert str(MINI) in message
    assert "\n" not in message


def test_a_fault_names_the_flag_once() -> None:
    values = RECIPES["mini"].model_dump()
    for run in (values["base"], values["super_resolution"]):
        run["optimizer"]["betas"] = (1.5, 0.9)
    flags = {f"{run}.optimizer.betas.0": "--adam-beta1" for run in ("base", "super_resolution")}
    with pytest.raises(UserError) as caught:
        Recipe.parse(values, "the command's flags", flags)
    assert str(caught.value) == (
        "In the command's flags: --adam-beta1 (base.optimizer.betas.0): must be less than 1, not "
        "1.5."
    )


def test_a_value_is_told_and_cut_short() -> None:
    with pytest.raises(UserError, match=r"stage: must be a table of settings, not 'x{59}….*\.$"):
        PretrainConfig.read(MINI, [f"stage={'x' * 100_000}"])


def test_overrides_replace_single_values() -> None:
    changes = [
        "train.steps=700",
        "train.optimizer.learning_rate = 2e-5",
        "train.optimizer.schedule=cosine",
        "stage.unet.blocks=[1, 1, 1]",
        "output=runs/a=b",
        "validation.prompts=['a [v] dog']",
        "initial_weights=some/folder",
    ]
    config, before = PretrainConfig.read(MINI, changes), PretrainConfig.read(MINI)
    assert config.train.steps == 700
    assert config.train.optimizer.learning_rate == 2e-5
    assert config.train.optimizer.schedule == "cosine"
    assert config.stage.unet.blocks == (1, 1, 1)
    assert config.output == Path("runs/a=b")
    assert config.validation.prompts == ("a [v] dog",)
    assert config.initial_weights == Path("some/folder")
    assert config.train.batch_size == before.train.batch_size
    assert config.stage.low_res == before.stage.low_res


def test_an_override_makes_the_tables_it_needs() -> None:
    values: dict[str, Any] = {}
    apply_override(values, "a.b.c=[1, 'x', true]")
    assert values == {"a": {"b": {"c": [1, "x", True]}}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "no 'key=value' form"),
        ("=3", "no 'key=value' form"),
        ("output.deep=3", "'output' is a single value"),
    ],
)
def test_malformed_overrides(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PretrainConfig.read(MINI, [override])


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no configuration file .*gone\.toml"):
        read_toml(tmp_path / "gone.toml")
    (tmp_path / "torn.toml").write_text("[train\nsteps = 3")
    with pytest.raises(UserError, match=r"torn\.toml is not valid TOML .*line 1"):
        read_toml(tmp_path / "torn.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(UserError, match=r"latin\.toml is not UTF-8 text"):
        read_toml(tmp_path / "latin.toml")


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        OptimizerConfig().learning_rate = 1.0  # type: ignore[misc]
