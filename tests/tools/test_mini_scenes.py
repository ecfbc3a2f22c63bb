"""The places of the small world: the same from the same number, otherwise never the same twice."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPTS = (
    "scenes",
    "boards",
    "heights",
    "land",
    "rooms",
    "skies",
    "town",
    "water",
    "woods",
    "stencils",
    "texture",
)
SIDE = 64


@pytest.fixture
def scenes(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script beside its neighbours."""
    monkeypatch.syspath_prepend(str(repository / "tools" / "mini"))
    yield import_module("scenes")
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("side", [64, 256])
def test_a_scene_is_a_picture_of_the_side_asked_for(scenes: ModuleType, side: int) -> None:
    for scene in scenes.SCENES:
        pixels = scene.draw(np.random.default_rng(0), side)
        assert pixels.shape == (side, side, 3), scene.name
        assert pixels.dtype == np.uint8, scene.name


def test_a_generator_always_gives_the_same_scene(scenes: ModuleType) -> None:
    for scene in scenes.SCENES:
        first, again = (scene.draw(np.random.default_rng(7), SIDE) for _ in range(2))
        assert np.array_equal(first, again), scene.name


def test_no_two_draws_of_a_scene_are_alike(scenes: ModuleType) -> None:
    for scene in scenes.SCENES:
        draws = np.stack([scene.draw(np.random.default_rng(n), SIDE) for n in range(6)])
        apart = np.abs(draws[:, None].astype(np.int16) - draws[None]).mean(axis=(2, 3, 4))
        assert apart[~np.eye(6, dtype=bool)].min() > 4, scene.name


def test_the_nearest_mean_names_most_scenes(scenes: ModuleType) -> None:
    """The crudest of classifiers, on 8 x 8 pixels, is right far more often than by chance."""

    def small(first: int, last: int) -> np.ndarray:
        return np.stack(
            [
                [
                    scene.draw(np.random.default_rng(n), SIDE)
                    .reshape(8, 8, 8, 8, 3)
                    .mean(axis=(1, 3))
                    .ravel()
                    for n in range(first, last)
                ]
                for scene in scenes.SCENES
            ]
        )

    means, seen = small(0, 24).mean(axis=1), small(100, 108)
    named = np.linalg.norm(seen[:, :, None] - means, axis=-1).argmin(axis=-1)
    assert (named == np.arange(len(means))[:, None]).mean() > 0.8


def test_things_stand_inside_the_picture(scenes: ModuleType) -> None:
    for scene in scenes.SCENES:
        low, high = scene.stand
        assert 0.4 < low < high < 1, scene.name


def test_a_phrase_belongs_to_one_scene(scenes: ModuleType) -> None:
    phrases = [phrase for scene in scenes.SCENES for phrase in (*scene.phrases, scene.alone)]
    assert len(phrases) == len(set(phrases))
    assert len({scene.name for scene in scenes.SCENES}) == len(scenes.SCENES)


def test_a_plain_ground_is_nearest_to_its_own_colour(scenes: ModuleType) -> None:
    names = list(scenes.COLOURS)
    colours = np.array([scenes.COLOURS[name] for name in names], float)
    for name in names:
        draws = [scenes.plain(np.random.default_rng(n), name, SIDE) for n in range(40)]
        assert not np.array_equal(draws[0], draws[1])
        for pixels in draws:
            mean = pixels.reshape(-1, 3).mean(axis=0)
            assert names[np.linalg.norm(colours - mean, axis=1).argmin()] == name
