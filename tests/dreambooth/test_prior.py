"""Class images: who draws them, what they depend on, and when they are drawn again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade.config.dreambooth import PriorConfig
from cascade.config.stage import SamplerConfig
from cascade.data.images import to_pil
from cascade.diffusion.noise import derive_seed
from cascade.dreambooth.prior import Prior, class_images, given_class_images, read_class_images
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.sampling import prompt_table
from cascade.stage import Stage
from cascade.text.prompts import PromptTable
from cascade.text.t5 import TextEncoder

CONFIG = PriorConfig(
    images=5, batch_size=2, sampler=SamplerConfig(name="ancestral", steps=2, guidance=2.0)
)


@pytest.fixture(scope="module")
def stages(tiny_cascade: Path) -> tuple[Stage, Stage]:
    return Stage.load(tiny_cascade / "base16"), Stage.load(tiny_cascade / "sr32")


@pytest.fixture(scope="module")
def prior(stages: tuple[Stage, Stage]) -> Prior:
    return Prior(stages[:1], "a dog", CONFIG, seed=3)


@pytest.fixture(scope="module")
def table(tiny_cascade: Path, stages: tuple[Stage, Stage]) -> PromptTable:
    return prompt_table(TextEncoder.load(tiny_cascade / "text"), ["a dog"], stages[0].config)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The index of every class image that is drawn from now on."""
    indices: list[int] = []
    draw = Prior.draw

    def noted(self: Prior, table: PromptTable, batch: Sequence[int]) -> list[Image.Image]:
        indices.extend(batch)
        return draw(self, table, batch)

    monkeypatch.setattr(Prior, "draw", noted)
    return indices


def _bytes(paths: Sequence[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def test_the_paper_samples_with_the_ancestral_sampler() -> None:
    assert PriorConfig().sampler.name == "ancestral"


def test_they_are_what_the_cascade_draws_of_the_class(
    tmp_path: Path, tiny_cascade: Path, prior: Prior, table: PromptTable
) -> None:
    paths = class_images(prior, table, tmp_path)
    assert [path.name for path in paths] == [f"00000{index}.png" for index in range(5)]
    pictures = Cascade.load(tiny_cascade).sample(
        "a dog",
        [derive_seed(3, "class image", index) for index in range(5)],
        samplers={"base16": CONFIG.sampler},
        last_stage="base16",
        batch_size=2,
    )
    assert _pixels(read_class_images(paths)) == _pixels(pictures.images)


def _pixels(images: Sequence[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_a_picture_does_not_depend_on_its_batch(prior: Prior, table: PromptTable) -> None:
    together = prior.draw(table, range(4))
    alone = prior.draw(table, [2])[0]
    # A batch of another size rounds differently: a pixel on the edge may fall to either level.
    assert np.abs(np.asarray(together[2], int) - np.asarray(alone, int)).max() <= 1
    assert together[2].tobytes() != together[1].tobytes()


def test_a_second_run_draws_nothing(
    tmp_path: Path, prior: Prior, table: PromptTable, drawn: list[int]
) -> None:
    first = class_images(prior, table, tmp_path)
    assert drawn == [0, 1, 2, 3, 4]
    drawn.clear()
    told: list[tuple[int, int]] = []
    second = class_images(
        prior, table, tmp_path, on_images=lambda done, total: told.append((done, total))
    )
    assert second == first
    assert drawn == []
    assert told[-1] == (5, 5)


def test_only_what_is_missing_is_written_again_and_with_the_same_bytes(
    tmp_path: Path, prior: Prior, table: PromptTable, drawn: list[int]
) -> None:
    paths = class_images(prior, table, tmp_path)
    before, times = _bytes(paths), [path.stat().st_mtime_ns for path in paths]
    drawn.clear()
    for index in (1, 4):
        paths[index].unlink()
    assert class_images(prior, table, tmp_path) == paths
    assert drawn == [0, 1, 4]  # whole batches, so that every bit is as before
    assert _bytes(paths) == before
    kept = [index for index in range(5) if paths[index].stat().st_mtime_ns == times[index]]
    assert kept == [0, 2, 3]


def test_a_larger_set_goes_on_from_a_smaller_one(
    tmp_path: Path, prior: Prior, table: PromptTable, drawn: list[int]
) -> None:
    class_images(replace(prior, config=CONFIG.model_copy(update={"images": 4})), table, tmp_path)
    drawn.clear()
    assert len(class_images(prior, table, tmp_path)) == 5
    assert drawn == [4]


def test_two_processes_share_the_work_and_make_the_same_files(
    tmp_path: Path, prior: Prior, table: PromptTable, drawn: list[int]
) -> None:
    alone = class_images(prior, table, tmp_path / "alone")
    drawn.clear()
    class_images(prior, table, tmp_path / "shared", rank=1, world=2)
    assert drawn == [2, 3]
    paths = class_images(prior, table, tmp_path / "shared", rank=0, world=2)
    assert drawn == [2, 3, 0, 1, 4]
    assert _bytes(paths) == _bytes(alone)


def test_the_key_names_everything_they_depend_on(prior: Prior, stages: tuple[Stage, Stage]) -> None:
    other_weights = Stage.build(stages[0].config, seed=9)
    guided = CONFIG.sampler.model_copy(update={"guidance": 3.0})
    others = [
        replace(prior, stages=(other_weights,)),
        replace(prior, stages=stages),
        replace(prior, prompt="a cat"),
        replace(prior, config=CONFIG.model_copy(update={"sampler": guided})),
        replace(prior, config=CONFIG.model_copy(update={"scenes": ("in snow",)})),
        replace(prior, seed=4),
    ]
    keys = {prior.key(), *(other.key() for other in others)}
    assert len(keys) == 7
    # How many there are, how many at once, and their weight change no picture.
    same = CONFIG.model_copy(update={"images": 7, "batch_size": 3, "weight": 0.5})
    assert replace(prior, config=same).key() == prior.key()


def test_scenes_take_turns_with_the_class_alone(
    tmp_path: Path, tiny_cascade: Path, prior: Prior
) -> None:
    in_scenes = replace(prior, config=CONFIG.model_copy(update={"scenes": ("in snow",)}))
    assert in_scenes.prompts == ("a dog", "a dog in snow")
    cascade = Cascade.load(tiny_cascade)
    table = cascade.prompts(["a dog", "a dog in snow"])
    alone = read_class_images(class_images(prior, table, tmp_path))
    mixed = read_class_images(class_images(in_scenes, table, tmp_path))
    same = [one == other for one, other in zip(_pixels(alone), _pixels(mixed), strict=True)]
    assert same == [True, False, True, False, True]


def test_super_resolution_enlarges_by_its_own_sampler(
    tmp_path: Path, tiny_cascade: Path, prior: Prior, stages: tuple[Stage, Stage]
) -> None:
    cascade = Cascade.load(tiny_cascade)
    both = replace(prior, stages=stages)
    paths = class_images(both, cascade.prompts(["a dog"]), tmp_path)
    seeds = [derive_seed(3, "class image", index) for index in range(5)]
    pictures = cascade.sample("a dog", seeds, samplers={"base16": CONFIG.sampler}, batch_size=2)
    assert pictures.images[0].size == (32, 32)
    # The base's pictures go on unrounded in both: the same work in the same batches.
    assert _pixels(read_class_images(paths)) == _pixels(to_pil(pictures.tensor))


def test_pictures_of_ones_own_are_found_and_nothing_else_is(tmp_path: Path, photos: Path) -> None:
    paths = given_class_images(photos)
    assert [path.name for path in paths] == ["0.png", "1.png", "2.png", "3.png"]
    assert given_class_images(None) == []
    assert given_class_images(tmp_path / "missing") == []
    assert given_class_images(tmp_path) == []


def test_a_damaged_class_image_is_named(tmp_path: Path, prior: Prior, table: PromptTable) -> None:
    paths = class_images(prior, table, tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:40])
    with pytest.raises(UserError, match=r"000003\.png cannot be read"):
        read_class_images(paths)


def test_the_users_cache_is_the_default_place(
    tmp_path: Path, prior: Prior, table: PromptTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = class_images(prior, table, None)
    assert paths[0].parent == tmp_path / "dreamcascade" / "class-images" / prior.key()
