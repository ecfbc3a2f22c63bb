"""Settings of a personalisation that takes a second or two, and one such run that has ended."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from cascade.config.dreambooth import (
    DreamBoothConfig,
    MaskConfig,
    PriorConfig,
    Recipe,
    Scene,
    SceneRowsConfig,
)
from cascade.config.folders import read_stage_config
from cascade.config.optimizer import OptimizerConfig
from cascade.config.stage import SamplerConfig, StageConfig
from cascade.config.train import TrainConfig
from cascade.dreambooth.personalise import personalise

Settings = Callable[..., DreamBoothConfig]


def _run(steps: int) -> TrainConfig:
    # Adam's eps is large for the comparisons of sums in another order; see tests/train.
    return TrainConfig(
        steps=steps,
        batch_size=2,
        optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-2),
        log_every=1,
        checkpoint_every=2,
    )


RECIPE = Recipe(
    prior=PriorConfig(
        images=5, batch_size=2, sampler=SamplerConfig(name="ancestral", steps=2, guidance=2.0)
    ),
    base=_run(5),
    super_resolution=_run(3),
)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Five class images, five steps of the base, three of super-resolution."""
    return RECIPE


@pytest.fixture(scope="session")
def photos_with_masks(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos, each with a mask beside it; read it only."""
    folder = tmp_path_factory.mktemp("masked") / "photos"
    shutil.copytree(photos, folder)
    for path in list(folder.iterdir()):
        mask = Image.new("L", (64, 64))
        ImageDraw.Draw(mask).ellipse((16, 16, 48, 40), fill=255)
        mask.save(folder / f"{path.stem}-masklabel.png")
    return folder


@pytest.fixture(scope="session")
def masked(recipe: Recipe) -> Recipe:
    """The recipe with masks, scenes in half of the photos' rows, and the class in scenes too."""
    rows = SceneRowsConfig(
        share=0.5,
        images=4,
        batch_size=2,
        sampler=SamplerConfig(steps=2, guidance=1.0),
        super_resolution=True,
    )
    return recipe.model_copy(
        update={
            "masks": MaskConfig(scenes=rows),
            "scenes": (
                Scene(phrase="on the beach", prompt="a beach"),
                Scene(phrase="in the snow", prompt="snow"),
            ),
            "prior": recipe.prior.model_copy(update={"in_scenes": True}),
        }
    )


@pytest.fixture(scope="session")
def settings(tiny_cascade: Path, photos: Path) -> Settings:
    """The settings of a run into a folder, with the class images beside it."""

    def settings(output: Path, recipe: Recipe = RECIPE, **changes: object) -> DreamBoothConfig:
        values: dict[str, object] = {
            "cascade": str(tiny_cascade),
            "instance_data_dir": photos,
            "output_dir": output,
            "class_noun": "dog",
            "class_data_dir": output.parent / "class",
            "validation_images": 0,
            "recipe": recipe,
        }
        return DreamBoothConfig.model_validate({**values, **changes})

    return settings


@pytest.fixture(scope="session")
def base(tiny_cascade: Path) -> StageConfig:
    """The base that is tuned, 16 pixels."""
    return read_stage_config(tiny_cascade / "base16")


@pytest.fixture(scope="session")
def super_resolution(tiny_cascade: Path) -> StageConfig:
    """The super-resolution stage, 16 to 32 pixels, trained on crops of 16."""
    return read_stage_config(tiny_cascade / "sr32")


@pytest.fixture(scope="session")
def whole(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a personalised cascade whose run nothing disturbed; read it only."""
    return personalise(settings(tmp_path_factory.mktemp("whole") / "mine"))
