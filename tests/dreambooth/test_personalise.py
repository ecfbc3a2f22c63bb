"""What a personalisation leaves behind, and how its output folder is used."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cascade.config.base import merged
from cascade.config.dreambooth import DreamBoothConfig, Recipe
from cascade.config.folders import read_manifest, read_stage_config
from cascade.config.stage import StageConfig
from cascade.data.images import read_image
from cascade.diffusion.noise import derive_seed
from cascade.dreambooth import personalise as module
from cascade.dreambooth.class_images import Drawing
from cascade.dreambooth.concepts import concepts_of
from cascade.dreambooth.personalise import personalise
from cascade.dreambooth.plan import all_prompts, make_plan
from cascade.errors import UserError
from cascade.info.folder import describe
from cascade.pipeline import Cascade
from cascade.sampling import prompt_tables
from cascade.stage import Stage
from cascade.text.prompts import load_text
from cascade.training.distributed import process_group
from cascade.training.report import read_log

Settings = Callable[..., DreamBoothConfig]
STAGES = ("base16", "sr32")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _changed(recipe: Recipe, **changes: object) -> Recipe:
    return Recipe.model_validate(merged(recipe.model_dump(), changes))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every stage that is trained from now on."""
    names: list[str] = []
    train = module.train

    def noted(stage: StageConfig, *rest: object) -> Stage:
        names.append(stage.name)
        return train(stage, *rest)

    monkeypatch.setattr(module, "train", noted)
    return names


def test_the_result_is_a_complete_cascade(whole: Path, tiny_cascade: Path) -> None:
    assert read_manifest(whole) == read_manifest(tiny_cascade)
    assert _files(whole / "text") == _files(tiny_cascade / "text")
    pictures = Cascade.load(whole).sample("a dog on the beach", [0])
    assert pictures.images[0].size == (32, 32)
    console = Console(width=100, record=True)
    console.print(describe(str(whole)))
    assert "subject" in console.export_text()


def test_every_stage_moved_and_records_the_subject(whole: Path, tiny_cascade: Path) -> None:
    for name in STAGES:
        tuned, source = Stage.load(whole / name), Stage.load(tiny_cascade / name)
        (subject,) = tuned.config.subjects
        assert subject.class_noun == "dog"
        assert 1 <= len(subject.identifier) <= 3
        assert tuned.config.unet == source.config.unet
        pairs = zip(tuned.network.named_parameters(), source.network.parameters(), strict=True)
        still = [name for (name, ours), theirs in pairs if torch.equal(ours, theirs)]
        # DreamBooth tunes all layers. A bias of all keys alike shifts every logit alike: the
        # softmax, and so the loss, does not depend on it.
        assert [name for name in still if not name.endswith("key.bias")] == []


def test_both_terms_are_reported_for_the_base_and_one_for_super_resolution(whole: Path) -> None:
    base = read_log(whole / "runs" / "base16" / "log.jsonl")
    assert [line["step"] for line in base] == [1, 2, 3, 4, 5]
    assert all(
        line["loss"] == pytest.approx(line["loss/instance"] + line["loss/prior"]) for line in base
    )
    upper = read_log(whole / "runs" / "sr32" / "log.jsonl")
    assert [line["step"] for line in upper] == [1, 2, 3]
    assert all("loss/prior" not in line for line in upper)


def test_class_images_are_drawn_by_the_frozen_base_with_the_recipes_sampler(
    whole: Path, tiny_cascade: Path, recipe: Recipe
) -> None:
    (place,) = (path for path in (whole.parent / "class").iterdir() if path.is_dir())
    expected = Cascade.load(tiny_cascade).sample(
        "a dog",
        [derive_seed(0, "class image", index) for index in range(5)],
        samplers={"base16": recipe.prior.sampler},
        last_stage="base16",
        batch_size=2,
    )
    for path, image in zip(sorted(place.glob("*.png")), expected.images, strict=True):
        with Image.open(path) as file:
            apart = np.asarray(file).astype(int) - np.asarray(image)
        # The run embeds its prompts together: the last bits differ, and one level may round over.
        assert abs(apart).max() <= 1


def test_a_run_is_a_function_of_its_settings_and_leaves_its_source_as_it_was(
    tmp_path: Path, tiny_cascade: Path, whole: Path, settings: Settings
) -> None:
    before = _files(tiny_cascade)
    again = personalise(settings(tmp_path / "mine"))
    assert _files(tiny_cascade) == before
    for name in STAGES:
        assert _files(again / name) == _files(whole / name)
    changes = {"seed": 1, "identifier": "zug", "stages": ("base16",)}
    other = personalise(settings(tmp_path / "other", **changes))
    assert _files(other / "base16") != _files(whole / "base16")


def test_the_next_run_uses_the_same_class_images(
    tmp_path: Path, whole: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("class images were drawn again")

    monkeypatch.setattr(Drawing, "draw", refuse)
    config = settings(tmp_path / "mine", class_data_dir=whole.parent / "class")
    assert _files(personalise(config) / "base16") == _files(whole / "base16")


def test_class_pictures_of_ones_own(
    tmp_path: Path,
    photos: Path,
    settings: Settings,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("there are class pictures already")

    monkeypatch.setattr(Drawing, "draw", refuse)
    recipe = _changed(recipe, prior={"images": 4})
    scenes = [{"phrase": "in the snow", "prompt": "snow"}]
    in_scenes = _changed(recipe, prior={"in_scenes": True}, scenes=scenes)  # of drawn ones only
    with pytest.raises(UserError, match=r"is the subject's photo .*; give pictures of others"):
        personalise(settings(tmp_path / "same", class_data_dir=photos, stages=("base16",)))
    assert not (tmp_path / "same").exists()
    (tmp_path / "class").mkdir()
    for path in photos.iterdir():
        ImageOps.invert(read_image(path)).save(tmp_path / "class" / path.name)
    own = {"class_data_dir": tmp_path / "class", "stages": ("base16",)}
    personalise(settings(tmp_path / "mine", recipe, **own))
    personalise(settings(tmp_path / "scenes", in_scenes, **own))
    tuned = [tmp_path / name / "base16" / "model.safetensors" for name in ("mine", "scenes")]
    assert tuned[0].read_bytes() == tuned[1].read_bytes()
    log = read_log(tmp_path / "mine" / "runs" / "base16" / "log.jsonl")
    assert log[0]["loss/prior"] > 0


def test_what_is_missing_of_the_number_of_class_pictures_is_drawn(
    tmp_path: Path,
    photos: Path,
    settings: Settings,
    recipe: Recipe,
    heard: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "class"
    folder.mkdir()
    for number in range(3):
        ImageOps.invert(read_image(photos / f"{number}.png")).save(folder / f"{number}.png")
    before = _files(folder)
    varied = _changed(recipe, prior={"variations": ["a red {class_noun}"]})
    config = settings(tmp_path / "mine", varied, class_data_dir=folder, stages=("base16",))
    plan = make_plan(config)
    tables = prompt_tables(load_text(plan.text), sorted(all_prompts(plan)), plan.stages.values())
    with process_group(1.0, tmp_path) as processes:
        _, preserved = concepts_of(plan, "base16", tables, processes)
    assert len(preserved.images) == recipe.prior.images
    # Of a person's own nobody knows the variation; those that are drawn take turns.
    assert preserved.prompts == ("a dog",) * 4 + ("a red dog",)
    after = _files(folder)
    assert {name: after[name] for name in before} == before
    assert sum(name.endswith(".png") for name in after) == recipe.prior.images
    personalise(config)
    assert "Class pictures: 3 of your own are used, and 2 drawn." in heard.messages
    # They are part of what the run is.
    (folder / "2.png").unlink()
    with pytest.raises(UserError, match="class_images"):
        personalise(config)


def test_the_prior_of_super_resolution_too(
    tmp_path: Path, settings: Settings, recipe: Recipe
) -> None:
    both = _changed(recipe, prior={"super_resolution": True})
    personalise(settings(tmp_path / "mine", both))
    log = read_log(tmp_path / "mine" / "runs" / "sr32" / "log.jsonl")
    assert all(line["loss/prior"] > 0 for line in log)
    sets = [path for path in (tmp_path / "class").iterdir() if path.is_dir()]
    sizes = {Image.open(place / "000000.png").size for place in sets}
    assert sizes == {(16, 16), (32, 32)}


def test_without_a_prior_nothing_is_drawn(
    tmp_path: Path, settings: Settings, recipe: Recipe
) -> None:
    personalise(settings(tmp_path / "mine", _changed(recipe, prior=None)))
    assert not (tmp_path / "class").exists()
    log = read_log(tmp_path / "mine" / "runs" / "base16" / "log.jsonl")
    assert all("loss/prior" not in line for line in log)


@pytest.mark.parametrize("tuned", STAGES)
def test_a_stage_that_is_not_tuned_is_copied(
    tmp_path: Path, tiny_cascade: Path, settings: Settings, trained: list[str], tuned: str
) -> None:
    folder = personalise(settings(tmp_path / "mine", stages=(tuned,)))
    assert trained == [tuned]
    for name in STAGES:
        assert (_files(folder / name) == _files(tiny_cascade / name)) == (name != tuned)


def test_pictures_are_drawn_on_the_way(
    tmp_path: Path, whole: Path, settings: Settings, recipe: Recipe
) -> None:
    told = {"trackers": ("tensorboard",), "logging_dir": tmp_path / "board"}
    looking = _changed(
        recipe,
        base={"validate_every": 5, **told},
        super_resolution={"validate_every": 3, **told},
    )
    all_of_it = settings(tmp_path / "mine", looking, validation_images=2, validation_cascade=True)
    folder = personalise(all_of_it)
    sizes = [
        {
            path.parent.name: Image.open(path).size
            for path in (folder / "runs" / name).rglob("*.png")
        }
        for name in ("base16", "sr32")
    ]
    # The photos' rows and the class images'; super-resolution, which has none, shows its input.
    wide = 6 * 18 - 2
    assert sizes == [
        {"samples": (34, 16), "cascade": (66, 66), "x0": (wide, 2 * 2 * 36 - 2)},
        {"samples": (66, 66), "cascade": (66, 66), "x0": (wide, 2 * 36 - 2)},
    ]
    assert _files(folder / "base16") == _files(whole / "base16")
    for name, terms in (("base16", {"instance", "prior"}), ("sr32", {"instance"})):
        events = EventAccumulator(str(tmp_path / "board" / name))
        tags = events.Reload().Tags()
        assert set(tags["images"]) == {"samples", "cascade", "x0"}
        assert terms <= {tag.removeprefix("loss/") for tag in tags["scalars"]}


def test_a_finished_run_is_not_trained_again(
    tmp_path: Path, whole: Path, settings: Settings, trained: list[str]
) -> None:
    moved = tmp_path / "mine"
    shutil.copytree(whole, moved)
    before = _files(moved)
    assert personalise(settings(moved)) == moved
    assert trained == []
    assert _files(moved) == before


def test_a_run_without_its_last_stage_goes_on_there(
    tmp_path: Path, whole: Path, settings: Settings, trained: list[str]
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "sr32")
    shutil.rmtree(folder / "runs" / "sr32")
    (folder / "cascade.json").unlink()
    personalise(settings(folder))
    assert trained == ["sr32"]
    assert _files(folder / "sr32") == _files(whole / "sr32")


def test_other_settings_are_refused_and_nothing_changes(
    whole: Path, settings: Settings, recipe: Recipe
) -> None:
    before = _files(whole)
    longer = _changed(recipe, base={"steps": 9})
    for config in (settings(whole, longer), settings(whole, class_noun="cat")):
        with pytest.raises(UserError, match="other settings"):
            personalise(config)
    assert _files(whole) == before


def test_the_same_photos_are_the_same_run_wherever_they_lie_and_others_are_not(
    tmp_path: Path, photos: Path, whole: Path, settings: Settings, trained: list[str]
) -> None:
    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    config = settings(whole, instance_data_dir=own)
    personalise(config)
    assert trained == []
    (own / "3.png").unlink()
    with pytest.raises(UserError, match="other settings"):
        personalise(config)


def test_a_folder_left_by_a_kill_before_the_first_file_was_whole_is_taken(
    tmp_path: Path, settings: Settings, recipe: Recipe
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".run.json.17.partial").write_text("{")
    personalise(settings(tmp_path / "mine", _changed(recipe, prior=None), stages=("sr32",)))
    assert read_stage_config(tmp_path / "mine" / "sr32").subjects
