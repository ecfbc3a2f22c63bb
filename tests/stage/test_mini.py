"""The small cascade as it ships: its stages are the recipes', and its weights are trained."""

from pathlib import Path

import pytest
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cascade.config.folders import cascade_folder, read_manifest, read_stage_config
from cascade.config.train import PretrainConfig
from cascade.pipeline import Cascade, CascadeOutput

# A share of the pictures' own spread. Unrelated pictures are 1.4 of it apart, equal ones 0, and
# what is tested here lies well to one side: the first `mini` had 0.62 and more between two prompts,
# and 0.13 and less between a picture and its enlargement.
SHARE = 0.25


@pytest.fixture(scope="module")
def drawn() -> CascadeOutput:
    """Two prompts from the same noise, by the checkpoints' own samplers."""
    return Cascade.load("mini").sample(["a dog", "a red sports car"], [0, 0])


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def test_its_stages_are_those_of_a_recipe(repository: Path) -> None:
    folder = cascade_folder("mini")
    for name in read_manifest(folder).stages:
        recipes = sorted((repository / "configs").glob(f"mini-{name}*.toml"))
        assert read_stage_config(folder / name) in [
            PretrainConfig.read(path).stage for path in recipes
        ]


@pytest.mark.slow
def test_pictures_are_of_their_prompts_and_no_noise(drawn: CascadeOutput) -> None:
    base = drawn.stages["base64"]
    assert _apart(base[0], base[1]) > SHARE * base.std()
    # Neighbours of white noise are 1.4 of the spread apart.
    assert _apart(base[..., 1:], base[..., :-1]) < base.std()


@pytest.mark.slow
def test_super_resolution_enlarges_the_picture_it_is_given(drawn: CascadeOutput) -> None:
    base, enlarged = drawn.stages["base64"], drawn.stages["sr256"]
    assert enlarged.shape == (2, 3, 256, 256)
    assert _apart(avg_pool2d(enlarged, 4), base) < SHARE * base.std()
