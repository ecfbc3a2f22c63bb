"""A personalisation with masks: what it draws, shows, depends on, and how it goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cascade.config.dreambooth import DreamBoothConfig, Recipe
from cascade.data.batch import Batch
from cascade.dreambooth import personalise as module
from cascade.dreambooth.batches import DreamBoothSamples
from cascade.dreambooth.class_images import Drawing
from cascade.dreambooth.personalise import personalise
from cascade.errors import UserError
from cascade.training import learner

Settings = Callable[..., DreamBoothConfig]
STAGES = ("base16", "sr32")


class Killed(Exception):
    """Stands for a process that ends without a word."""


@pytest.fixture(scope="session")
def masked_settings(settings: Settings, masked: Recipe, photos_with_masks: Path) -> Settings:
    """Settings of a run with masks into a folder."""

    def made(output: Path, recipe: Recipe = masked, **changes: object) -> DreamBoothConfig:
        return settings(output, recipe, **{"instance_data_dir": photos_with_masks, **changes})

    return made


@pytest.fixture(scope="session")
def masked_run(
    masked_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Batch]]:
    """The folder of such a run that nothing disturbed, to be read only, and the rows it scored."""
    seen: list[Batch] = []
    row_losses = learner.row_losses

    def noted(denoiser: object, objective: object, batch: Batch, *rest: object) -> object:
        seen.append(batch)
        return row_losses(denoiser, objective, batch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "row_losses", noted)
        folder = personalise(masked_settings(tmp_path_factory.mktemp("masked") / "mine"))
    return folder, seen


@pytest.fixture(scope="session")
def whole_masked(masked_run: tuple[Path, list[Batch]]) -> Path:
    """Its folder."""
    return masked_run[0]


def _weights(folder: Path) -> list[bytes]:
    return [(folder / name / "model.safetensors").read_bytes() for name in STAGES]


def test_scenes_and_the_class_in_them_are_drawn_for_each_stage(whole_masked: Path) -> None:
    sets = [path for path in (whole_masked.parent / "class").iterdir() if path.is_dir()]
    shown = [
        (
            Image.open(place / "000000.png").width,
            *json.loads((place / "about.json").read_text())["prompts"],
            len(list(place.glob("*.png"))),
        )
        for place in sets
    ]
    assert sorted(shown) == [
        (16, "a beach", "snow", 4),
        (16, "a dog", "a dog on the beach", "a dog", "a dog in the snow", 5),
        (32, "a beach", "snow", 4),
    ]


def test_the_sheet_is_there_before_the_work(
    tmp_path: Path,
    masked_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    heard: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "mine" / "masks.png"

    def stop(*arguments: object) -> None:
        with Image.open(path) as sheet:
            # A row per photo: it, its mask, the subject on a plain ground.
            assert sheet.size == (3 * 258 - 2, 4 * 258 - 2)
        raise Killed

    monkeypatch.setattr(module, "_embed", stop)
    with pytest.raises(Killed):
        personalise(masked_settings(tmp_path / "mine"))
    assert str(path) in heard.text


def test_the_rows_reach_the_loss(masked_run: tuple[Path, list[Batch]]) -> None:
    _, seen = masked_run
    assert len(seen) == 5 + 3
    ends = set()
    for batch in seen:
        rows = zip(batch.terms, batch.prompts, batch.pixel_weights, strict=True)
        for term, prompt, weights in rows:
            if term == "instance":
                ends.add(prompt.split(" dog")[1])
            else:
                assert torch.equal(weights, torch.ones_like(weights))
    assert {"", " on the beach", " in the snow"} == ends


@pytest.mark.slow
def test_killed_while_drawing_and_while_training_it_ends_the_same(
    tmp_path: Path,
    whole_masked: Path,
    masked_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = masked_settings(tmp_path / "mine")
    rows, draw = DreamBoothSamples.rows, Drawing.draw
    batches: list[object] = []

    def dies_drawing(self: Drawing, *rest: object) -> list[Image.Image]:
        if len(batches) == 4:  # three batches of class images and one of scenes are there
            raise Killed
        batches.append(rest)
        return draw(self, *rest)

    def dies_training(self: DreamBoothSamples, positions: range) -> Batch:
        if 6 in positions:
            raise Killed
        return rows(self, positions)

    for place, name, dies in (
        (Drawing, "draw", dies_drawing),
        (DreamBoothSamples, "rows", dies_training),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, dies)
            with pytest.raises(Killed):
                personalise(config)
    personalise(config)
    assert _weights(tmp_path / "mine") == _weights(whole_masked)


def test_masks_are_part_of_what_makes_a_run(
    tmp_path: Path, photos_with_masks: Path, whole_masked: Path, masked_settings: Settings
) -> None:
    own = tmp_path / "photos"
    shutil.copytree(photos_with_masks, own)
    config = masked_settings(whole_masked, instance_data_dir=own)
    personalise(config)  # the same run: nothing is left to do
    note = json.loads((whole_masked / "run.json").read_text())
    assert note["masks"].keys() == note["photos"].keys() == {f"{i}.png" for i in range(4)}
    assert note["masks"]["0.png"].startswith("0-masklabel.png ")
    with Image.open(own / "2-masklabel.png") as mask:
        mask.transpose(Image.Transpose.ROTATE_90).save(own / "2-masklabel.png")
    with pytest.raises(UserError, match="other settings"):
        personalise(config)


@pytest.mark.parametrize("all_alike", ["unmasked_weight", "unmasked_probability"])
def test_masks_that_change_nothing_are_plain_dreambooth(
    tmp_path: Path,
    whole: Path,
    masked_settings: Settings,
    masked: Recipe,
    recipe: Recipe,
    all_alike: str,
) -> None:
    no_rows = masked.masks.scenes.model_copy(update={"share": 0.0})
    masks = masked.masks.model_copy(update={"scenes": no_rows, all_alike: 1.0})
    personalise(masked_settings(tmp_path / "mine", recipe.model_copy(update={"masks": masks})))
    assert _weights(tmp_path / "mine") == _weights(whole)
