"""The noise on the low-resolution picture: recorded, and put on when training and sampling."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from cascade.config.dreambooth import AUGMENTATIONS, AugmentationName, DreamBoothConfig, Recipe
from cascade.config.stage import AugmentationLevel
from cascade.diffusion.noise import LowResolution, Noise
from cascade.dreambooth.personalise import personalise
from cascade.dreambooth.plan import make_plan, tuned_config
from cascade.pipeline import Cascade

Settings = Callable[..., DreamBoothConfig]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_augmentation_is_recorded(
    tmp_path: Path, settings: Settings, recipe: Recipe, name: AugmentationName
) -> None:
    plan = make_plan(settings(tmp_path / "mine", recipe.model_copy(update={"augmentation": name})))
    source = plan.stages["sr32"].low_res
    tuned = tuned_config(plan, plan.stages["sr32"]).low_res
    if name == "imagen":
        ends = (AugmentationLevel(value=0.0), AugmentationLevel(value=1.0))
        assert tuned.training_levels == ends
        assert tuned.sampling_level == source.sampling_level
    else:
        variance = {"dreambooth": 1e-5, "dreambooth-reference": 1e-3}[name]
        level = AugmentationLevel(value=variance, unit="variance")
        assert tuned.training_levels == (level, level)
        assert tuned.sampling_level == level
    levels = {name: getattr(source, name) for name in ("training_levels", "sampling_level")}
    assert tuned.model_copy(update=levels) == source
    assert tuned_config(plan, plan.stages["base16"]).low_res is None


@pytest.mark.parametrize("name", ["imagen", "dreambooth"])
def test_the_augmentation_is_put_on_in_training_and_in_sampling(
    tmp_path: Path,
    settings: Settings,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    name: AugmentationName,
) -> None:
    variances: list[float] = []
    call = LowResolution.__call__

    def spy(
        self: LowResolution, low_res: Tensor, size: tuple[int, int], level: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        sigma = self.schedule.sigma(self.schedule.draw(level))
        variances.extend((sigma**2 / (1 + sigma**2)).tolist())
        return call(self, low_res, size, level, noise)

    monkeypatch.setattr(LowResolution, "__call__", spy)
    changed = recipe.model_copy(update={"augmentation": name, "prior": None})
    folder = personalise(settings(tmp_path / "mine", changed))
    assert len(variances) == 6  # three steps of two rows
    if name == "imagen":
        assert len(set(variances)) == 6
    else:
        assert variances == pytest.approx([1e-5] * 6)
    variances.clear()
    Cascade.load(folder).sample("a dog", [0, 1])
    # The tiny checkpoint samples at time 0.2 of the cosine schedule.
    expected = np.sin(0.2 * np.pi / 2) ** 2 if name == "imagen" else 1e-5
    assert variances == pytest.approx([expected] * 2)
