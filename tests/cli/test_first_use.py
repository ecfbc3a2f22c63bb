"""The first hour: help that tells everything, a plan before the work, the next command after it."""

import json
import shlex
from collections.abc import Callable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade.cli.dreambooth_flags import NUMBERS, in_recipes
from cascade.cli.recipe import PATHS, recipe_from_flags
from cascade.config.recipes import RECIPES

Command = Callable[..., Any]


@pytest.mark.parametrize("flag", [flag.name for flag in NUMBERS])
def test_help_tells_what_every_recipe_has(flag: str) -> None:
    told = in_recipes(*PATHS[flag])
    assert told
    for name in RECIPES if ", " in told else ():
        assert f"{name} " in told


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("max_train_steps", "paper 1000, mini 375, deepfloyd 150"),
        ("sr_train_batch_size", "paper 1, mini 4, deepfloyd 2"),  # of a pass
        ("gradient_accumulation_steps", "paper 1, mini 1, deepfloyd 1 and 6"),
        ("masks", "paper none, mini auto, deepfloyd none"),
        ("mixed_precision", "paper no, mini auto, deepfloyd no"),
        ("adam_beta2", "0.999"),
        ("flip", "off"),
    ],
)
def test_a_recipe_s_number_is_told_as_the_flag_takes_it(flag: str, told: str) -> None:
    assert in_recipes(*PATHS[flag]) == told


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_own_number_given_as_a_flag_changes_nothing(name: Any) -> None:
    recipe = RECIPES[name]
    assert recipe_from_flags(recipe, {}, 1) == recipe
    own = {
        "max_train_steps": recipe.base.steps,
        "train_batch_size": recipe.base.batch_size // recipe.base.gradient_accumulation_steps,
        "sr_train_batch_size": recipe.super_resolution.batch_size
        // recipe.super_resolution.gradient_accumulation_steps,
        "sr_learning_rate": recipe.super_resolution.optimizer.learning_rate,
    }
    assert own.keys() <= PATHS.keys()
    assert recipe_from_flags(recipe, own, 1) == recipe


@pytest.fixture
def personalising(tiny_cascade: Path, photos: Path, tmp_path: Path) -> list[object]:
    """A run of a step or two into `mine`."""
    return [
        "dreambooth",
        *("--cascade", tiny_cascade, "--instance-data-dir", photos, "--class-noun", "dog"),
        *("--output-dir", tmp_path / "mine", "--class-data-dir", tmp_path / "class"),
        *("--recipe", "paper", "--num-class-images", 2, "--max-train-steps", 2),
        *("--sr-max-train-steps", 1),
    ]


def _files(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_dry_run_tells_the_plan_and_leaves_nothing(
    command: Command, personalising: list[object], tmp_path: Path
) -> None:
    shown = command(*personalising, "--dry-run")
    assert shown.status == 0
    lines = map(str.split, shown.out.splitlines())
    rows = {words[0]: words[1:] for words in lines if words}
    assert rows["steps"] == ["2", "1"]
    assert " ".join(rows["batch"]) == "1 photo + 1 class image 1 photo 4 pictures"
    assert "2 class images" in shown.out
    assert "in all on cpu, by a probe." in shown.out
    assert list(_files(tmp_path)) == []


def test_a_run_ends_with_pictures_and_the_command_that_draws_more(
    command: Command, personalising: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = command(*personalising, "--validation-prompt", "a {identifier} {class_noun} at sea")
    assert shown.status == 0
    samples = tmp_path / "mine" / "samples.png"
    assert str(samples) in shown.out
    with Image.open(samples) as grid:
        assert grid.size == (4 * 32 + 3 * 2, 32)
        ours = np.array(grid)[:, :32]
    *_, last = shown.out.splitlines()
    words = shlex.split(last.removeprefix("Draw: cascade "))
    monkeypatch.chdir(tmp_path)
    assert command(*words, "--num-images", 1, "--steps", 1).status == 0
    # The samples are those that the command draws by default, to its rounding.
    prompt = words[-1].removesuffix(" on the beach") + " at sea"
    drawn = command(*words[:-1], prompt, "--output", "again")
    assert drawn.status == 0
    theirs = np.array(Image.open(tmp_path / "again" / "sr32" / "00-0.png"))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    # Started again it draws none anew, but those that are gone.
    made = samples.stat().st_mtime_ns
    again = command(*personalising, "--validation-prompt", "a {identifier} {class_noun} at sea")
    assert again.status == 0
    assert samples.stat().st_mtime_ns == made
    assert "by a probe" not in again.out
    samples.unlink()
    command(*personalising)
    assert samples.is_file()


def test_pictures_can_be_left_out_and_not_asked_for_at_once(
    command: Command, personalising: list[object], tmp_path: Path
) -> None:
    none = [*personalising, "--num-validation-images", 0]
    for asked in (("--validation-prompt", "a {identifier} dog"), ("--validation-steps", 1)):
        refused = command(*none, *asked)
        assert refused.status == 2
        assert "no validation images are wanted" in refused.err
    idle = command(*personalising, "--validation-cascade")
    assert idle.status == 2
    assert "give --validation-steps, or leave it out" in idle.err
    assert not (tmp_path / "mine").exists()
    quiet = command(*none, "--quiet")
    assert (quiet.status, quiet.out) == (0, "")
    assert not (tmp_path / "mine" / "samples.png").exists()
    assert (tmp_path / "mine" / "cascade.json").is_file()


@pytest.fixture
def training(tmp_path: Path, training_file: Callable[..., Path]) -> Path:
    """The settings of a run of two steps of the tiny cascade's base into `run`."""
    return training_file(tmp_path, train={"steps": 2, "batch_size": 1})


def test_stages_become_a_cascade_by_the_command_that_training_ends_with(
    command: Command, training: Path, tiny_cascade: Path, tmp_path: Path
) -> None:
    planned = command("train", training, "--dry-run")
    assert planned.status == 0
    assert "1 of 10 pictures" in planned.out
    assert not (tmp_path / "run").exists()
    shown = command("train", training)
    assert shown.status == 0
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step-000002.png"]
    words = shlex.split(shown.out.splitlines()[-1].partition("cascade assemble ")[2])
    assert words[-1] == "CASCADE"
    made = tmp_path / "made"
    stages = [words[0], tiny_cascade / "sr32"]
    assembled = command("assemble", *stages, *words[1:-1], made, "--recipe", "mini", "--half")
    assert assembled.status == 0
    assert command("info", made).status == 0
    drawn = command("sample", "--cascade", made, "--prompt", "a dog", "-o", tmp_path / "drawn")
    assert drawn.status == 0
    held = json.loads((made / "cascade.json").read_text(encoding="utf-8"))
    assert (held["name"], held["recipe"], held["text_encoder"]) == ("made", "mini", "text")


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (["sr32", "base16"], "base first"),
        (["base16", "base16"], "two stages are called 'base16'"),
        (["text"], "text"),
        (["run"], "is the folder of a run; its stage is"),
    ],
)
def test_stages_that_make_no_cascade_are_refused_and_nothing_is_made(
    command: Command, tiny_cascade: Path, tmp_path: Path, stages: list[str], told: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stage").symlink_to(tiny_cascade / "base16")
    places = [tmp_path / name if name == "run" else tiny_cascade / name for name in stages]
    text = ("--text-encoder", tiny_cascade / "text")
    refused = command("assemble", *places, *text, "--output", tmp_path / "made")
    assert refused.status == 2
    assert told in refused.err
    assert not (tmp_path / "made").exists()


def test_an_encoder_is_copied_or_referred_to_and_what_lies_there_stays(
    command: Command, tiny_cascade: Path, tmp_path: Path
) -> None:
    text = tiny_cascade / "text"
    words = ["assemble", tiny_cascade / "base16", "--output", tmp_path / "made"]
    refused = command(*words, "--refer-to-text-encoder")
    assert refused.status == 2
    assert "needs --text-encoder too" in refused.err
    assert command(*words, "--text-encoder", text, "--refer-to-text-encoder").status == 0
    assert not (tmp_path / "made" / "text").exists()
    assert command("info", tmp_path / "made").status == 0
    before = sorted(_files(tmp_path / "made"))
    again = command(*words, "--text-encoder", text)
    assert again.status == 2
    assert "is not an empty folder" in again.err
    assert sorted(_files(tmp_path / "made")) == before


def test_the_doctor_tells_what_there_is_and_what_is_amiss(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = json.loads(command("doctor", "--json").out)
    asked = [line for line in requires("dreamcascade") or () if "extra ==" not in line]
    assert len(found["software"]) == len(asked) + 2
    assert found["devices"]["cpu"]
    assert found["folders"]["class images"].startswith(str(tmp_path))
    assert found["faults"] == []
    assert "dreamcascade" in command("doctor").out
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    ill = command("doctor")
    assert ill.status == 2
    assert "Nothing can be written into" in ill.err


def test_a_shell_completes_commands(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CASCADE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cascade ass")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert command().out.split() == ["assemble"]
