"""Settings of a personalisation that takes a second or two, and one such run that has ended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.config.dreambooth import DreamBoothConfig, PriorConfig, Recipe
from cascade.config.stage import SamplerConfig
from cascade.config.train import OptimizerConfig, TrainConfig
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
def settings(tiny_cascade: Path, photos: Path) -> Settings:
    """The settings of a run into a folder, with the class images beside it."""

    def settings(output: Path, recipe: Recipe = RECIPE, **changes: object) -> DreamBoothConfig:
        values: dict[str, object] = {
            "cascade": str(tiny_cascade),
            "instance_data_dir": photos,
            "output_dir": output,
            "class_noun": "dog",
            "class_data_dir": output.parent / "class",
            "recipe": recipe,
        }
        return DreamBoothConfig.model_validate({**values, **changes})

    return settings


@pytest.fixture(scope="session")
def whole(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a personalised cascade whose run nothing disturbed; read it only."""
    return personalise(settings(tmp_path_factory.mktemp("whole") / "mine"))
