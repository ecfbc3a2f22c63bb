"""Options are made from settings; a file, flags and `--set` give them, in this order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.cli.dreambooth_flags import FLAGS as DREAMBOOTH
from cascade.cli.embed import FLAGS as EMBED
from cascade.cli.options import Flag, field_at, help_of, set_at
from cascade.cli.sample import FLAGS as SAMPLE
from cascade.config.base import Frozen, merged
from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.embed import EmbedConfig
from cascade.config.recipes import RECIPES
from cascade.config.sample import SampleConfig
from cascade_export.cli.export import FLAGS as EXPORT
from cascade_export.cli.export_triton import FLAGS as EXPORT_TRITON
from cascade_export.settings import ExportConfig, ServerConfig

Command = Callable[..., Any]
PLAIN = "instance_data_dir = 'photos'\nclass_noun = 'dog'\noutput_dir = 'new'\n"
TABLES: tuple[tuple[type[Frozen], tuple[Flag, ...]], ...] = (
    (SampleConfig, SAMPLE),
    (DreamBoothConfig, DREAMBOOTH),
    (EmbedConfig, EMBED),
    (ExportConfig, EXPORT),
    (ServerConfig, EXPORT_TRITON),
)


@pytest.mark.parametrize(
    ("model", "flag"), [(model, flag) for model, flags in TABLES for flag in flags],
    ids=lambda one: getattr(one, "name", getattr(one, "__name__", "")),
)  # fmt: skip
def test_every_flag_stands_for_settings_that_say_what_they_are(
    model: type[Frozen], flag: Flag
) -> None:
    assert all(field_at(model, path).description for path in flag.paths)
    assert len(help_of(model, flag)) > len("Seed.")


@pytest.mark.parametrize(
    ("model", "flags"), TABLES, ids=lambda one: getattr(one, "__name__", "flags")
)
def test_every_setting_of_a_command_has_one_flag_at_most(
    model: type[Frozen], flags: tuple[Flag, ...]
) -> None:
    paths = [path for flag in flags for path in flag.paths]
    assert len(paths) == len(set(paths)) or model is DreamBoothConfig
    assert len({flag.name for flag in flags}) == len(flags)


def test_help_tells_the_range_of_the_setting() -> None:
    ranges = {flag.name: help_of(SampleConfig, flag).partition(" [")[2] for flag in SAMPLE}
    assert ranges["steps"] == "1 <= x <= 1000]"
    assert ranges["noise_level"] == "0 <= x <= 1]"
    assert ranges["seed"] == ""  # nobody comes near its limits
    rate = next(flag for flag in DREAMBOOTH if flag.name == "learning_rate")
    assert help_of(DreamBoothConfig, rate).endswith("[0 < x <= 10]")


def test_values_are_laid_over_others() -> None:
    start = {"a": {"b": 1, "c": (2, 3)}, "off": None}
    found = merged(start, {"a": {"b": 4}, "d": 5})
    assert found == {"a": {"b": 4, "c": (2, 3)}, "off": None, "d": 5}
    set_at(found, "a.c.1", 6)
    set_at(found, "off.x", 7)
    set_at(found, "new.x", 8)
    assert found == {"a": {"b": 4, "c": (2, 6)}, "off": None, "d": 5, "new": {"x": 8}}
    assert start == {"a": {"b": 1, "c": (2, 3)}, "off": None}


def test_a_file_then_flags_then_set(
    command: Command, received: list[DreamBoothConfig], tmp_path: Path, photos: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f"instance_data_dir = '{photos}'\nclass_noun = 'cat'\noutput_dir = '{tmp_path / 'new'}'\n"
        "[recipe]\npreset = 'paper'\nflip = true\n[recipe.base]\nsteps = 40\nbatch_size = 6\n"
        "[recipe.base.optimizer]\nlearning_rate = 1e-6\n"
    )
    given = ("dreambooth", "--config", file, "--class-noun", "dog", "--max-train-steps", 20)
    assert command(*given, "--set", "recipe.base.steps=10", "--set", "seed=3").status == 0
    (config,) = received
    assert (config.class_noun, config.seed) == ("dog", 3)
    paper = RECIPES["paper"]
    assert config.recipe == paper.model_copy(
        update={
            "flip": True,
            "base": paper.base.model_copy(
                update={
                    "steps": 10,
                    "batch_size": 6,
                    "optimizer": paper.base.optimizer.model_copy(update={"learning_rate": 1e-6}),
                }
            ),
        }
    )
    assert command(*given, "--recipe", "mini").status == 0
    assert received[1].recipe.masks == RECIPES["mini"].masks
    assert received[1].recipe.base.steps == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sample",), "--prompt (prompts): is missing"),
        (("dreambooth", "--output-dir", "new"), "--class-noun (class_noun): is missing"),
        (("sample", "--prompt", "a", "--set", "stepz=3"), "did you mean 'steps'?"),
        (("sample", "--prompt", "a", "--set", "steps"), "has no 'key=value' form"),
        (("sample", "--config", "bad.toml"), "bad.toml is not valid TOML"),
        (("sample", "--config", "wrong.toml"), "In wrong.toml and the command's flags: --guidance"),
        (("dreambooth", "--config", "preset.toml"), "There is no recipe 'papper'; take one of"),
        (("train", "--config", "gone.toml"), "There is no configuration file gone.toml"),
        (("train", "gone.toml", "--config", "gone.toml"), "as CONFIG or as --config"),
        (("dreambooth", "--config", "number.toml"), "(cascade): must be a valid string, not 3"),
        (("dreambooth", "--config", "stages.toml"), "(stages): must be a list, not 3"),
        (("dreambooth", "--config", "recipe.toml"), "the recipe must be a name or settings, not 3"),
        (("dreambooth", "--config", "part.toml", "--flip"), "base: must be a table of settings"),
        (("embed", "--config", "text.toml", "--cleaning", "lower"), "text: must be a table"),
        (("embed", "--config", "gone.toml"), "There is no configuration file gone.toml"),
    ],
)
def test_mistakes_are_told_in_one_way(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_text("a = \n")
    Path("wrong.toml").write_text("guidance = -1\nprompts = ['a']\n")
    Path("preset.toml").write_text(f"{PLAIN}[recipe]\npreset = 'papper'\n")
    kinds = {"number": "cascade = 3", "stages": "stages = 3", "recipe": "recipe = 3"}
    kinds |= {"part": "[recipe]\nbase = 3", "text": "text = 3"}
    for name, line in kinds.items():
        Path(f"{name}.toml").write_text(f"{PLAIN if name != 'text' else ''}{line}\n")
    done = command(*words)
    assert done.status == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_sample_reads_all_its_settings_from_a_file(
    command: Command, tiny_cascade: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sample.toml"
    file.write_text(
        f"prompts = ['a dog']\ncascade = '{tiny_cascade}'\noutput = '{tmp_path / 'out'}'\n"
        "num_images = 1\n[samplers.base16]\nsteps = 1\n[samplers.sr32]\nsteps = 1\n"
    )
    assert command("sample", "--config", file, "--seed", 5).status == 0
    assert (tmp_path / "out" / "sr32" / "00-5.png").is_file()
