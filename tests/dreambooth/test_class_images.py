"""Class images and scenes: who draws them, what they depend on, and when they are drawn again."""

import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade.config.dreambooth import DrawnConfig, PriorConfig, Recipe
from cascade.config.recipes import RECIPES
from cascade.config.stage import SamplerConfig
from cascade.data.finding import SortedFiles
from cascade.data.images import read_image, to_pil
from cascade.diffusion.noise import derive_seed
from cascade.dreambooth import class_images as module
from cascade.dreambooth.class_images import (
    Drawing,
    make_pictures,
    own_class_images,
    read_pictures,
    read_squares,
)
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.sampling import Tables, prompt_tables
from cascade.stage import Stage
from cascade.text.encoder import TextEncoder

CONFIG = DrawnConfig(
    images=5, batch_size=2, sampler=SamplerConfig(name="ancestral", steps=2, guidance=2.0)
)


@pytest.fixture(scope="module")
def stages(tiny_cascade: Path) -> tuple[Stage, Stage]:
    return Stage.load(tiny_cascade / "base16"), Stage.load(tiny_cascade / "sr32")


@pytest.fixture(scope="module")
def drawing(stages: tuple[Stage, Stage]) -> Drawing:
    return Drawing(stages[:1], ("a dog",), CONFIG, seed=3)


@pytest.fixture(scope="module")
def tables(tiny_cascade: Path, stages: tuple[Stage, Stage]) -> Tables:
    encoder = TextEncoder.load(tiny_cascade / "text")
    return prompt_tables(encoder, ["a dog"], [stage.config for stage in stages])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The index of every class image that is drawn from now on."""
    indices: list[int] = []
    draw = Drawing.draw

    def noted(self: Drawing, tables: Tables, batch: Sequence[int]) -> list[Image.Image]:
        indices.extend(batch)
        return draw(self, tables, batch)

    monkeypatch.setattr(Drawing, "draw", noted)
    return indices


def _bytes(paths: Sequence[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def test_the_paper_samples_with_the_ancestral_sampler() -> None:
    assert PriorConfig().sampler.name == "ancestral"


def test_they_are_what_the_cascade_draws_of_the_class(
    tmp_path: Path, tiny_cascade: Path, drawing: Drawing, tables: Tables
) -> None:
    paths = make_pictures(drawing, tables, tmp_path)
    names = [*(f"00000{index}.png" for index in range(4)), "000004-of-1.png"]
    assert [path.name for path in paths] == names
    pictures = Cascade.load(tiny_cascade).sample(
        "a dog",
        [derive_seed(3, "class image", index) for index in range(5)],
        samplers={"base16": CONFIG.sampler},
        last_stage="base16",
        batch_size=2,
    )
    assert _pixels(read_pictures(paths)) == _pixels(pictures.images)


def _pixels(images: Sequence[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_a_picture_does_not_depend_on_its_batch(drawing: Drawing, tables: Tables) -> None:
    together = drawing.draw(tables, range(4))
    alone = drawing.draw(tables, [2])[0]
    # A batch of another size rounds differently: a pixel on the edge may fall to either level.
    assert np.abs(np.asarray(together[2], int) - np.asarray(alone, int)).max() <= 1
    assert together[2].tobytes() != together[1].tobytes()


def test_a_second_run_draws_nothing(
    tmp_path: Path, drawing: Drawing, tables: Tables, drawn: list[int]
) -> None:
    first = make_pictures(drawing, tables, tmp_path)
    assert drawn == [0, 1, 2, 3, 4]
    drawn.clear()
    told: list[tuple[int, int]] = []
    second = make_pictures(
        drawing, tables, tmp_path, on_images=lambda done, total: told.append((done, total))
    )
    assert second == first
    assert drawn == []
    assert told[-1] == (5, 5)


def test_only_what_is_missing_is_written_again_and_with_the_same_bytes(
    tmp_path: Path, drawing: Drawing, tables: Tables, drawn: list[int]
) -> None:
    paths = make_pictures(drawing, tables, tmp_path)
    before, times = _bytes(paths), [path.stat().st_mtime_ns for path in paths]
    drawn.clear()
    for index in (1, 4):
        paths[index].unlink()
    assert make_pictures(drawing, tables, tmp_path) == paths
    assert drawn == [0, 1, 4]  # whole batches, so that every bit is as before
    assert _bytes(paths) == before
    kept = [index for index in range(5) if paths[index].stat().st_mtime_ns == times[index]]
    assert kept == [0, 2, 3]


@pytest.mark.parametrize(("images", "missing"), [(4, [4]), (3, [2, 3, 4])])
def test_a_larger_set_goes_on_from_the_whole_batches_of_a_smaller_one(
    tmp_path: Path,
    drawing: Drawing,
    tables: Tables,
    drawn: list[int],
    images: int,
    missing: list[int],
) -> None:
    """A shorter last batch rounds differently: a set would depend on what was asked for before."""
    small = replace(drawing, config=CONFIG.model_copy(update={"images": images}))
    make_pictures(small, tables, tmp_path / "grown")
    drawn.clear()
    grown = make_pictures(drawing, tables, tmp_path / "grown")
    assert drawn == missing
    at_once = make_pictures(drawing, tables, tmp_path / "at once")
    assert _bytes(grown) == _bytes(at_once)
    assert [path.name for path in grown] == [path.name for path in at_once]


def test_two_processes_share_the_work_and_make_the_same_files(
    tmp_path: Path, drawing: Drawing, tables: Tables, drawn: list[int]
) -> None:
    alone = make_pictures(drawing, tables, tmp_path / "alone")
    drawn.clear()
    make_pictures(drawing, tables, tmp_path / "shared", rank=1, world=2)
    assert drawn == [2, 3]
    paths = make_pictures(drawing, tables, tmp_path / "shared", rank=0, world=2)
    assert drawn == [2, 3, 0, 1, 4]
    assert _bytes(paths) == _bytes(alone)


def test_the_key_names_everything_they_depend_on(
    drawing: Drawing, stages: tuple[Stage, Stage]
) -> None:
    other_weights = Stage.build(stages[0].config, seed=9)
    guided = CONFIG.sampler.model_copy(update={"guidance": 3.0})
    others = [
        replace(drawing, stages=(other_weights,)),
        replace(drawing, stages=stages),
        replace(drawing, prompts=("a cat",)),
        replace(drawing, config=CONFIG.model_copy(update={"sampler": guided})),
        replace(drawing, prompts=("a dog", "a dog in snow")),
        replace(drawing, seed=4),
        replace(drawing, text="another encoder"),
        replace(drawing, config=CONFIG.model_copy(update={"batch_size": 3})),
    ]
    keys = {drawing.key(), *(other.key() for other in others)}
    assert len(keys) == 9
    # How many there are changes no picture.
    same = CONFIG.model_copy(update={"images": 7})
    assert replace(drawing, config=same).key() == drawing.key()


def test_the_key_tells_bf16_from_fp32_where_the_device_decides(
    drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {}
    for precision in ("fp32", "bf16", "auto"):
        sampler = CONFIG.sampler.model_copy(update={"precision": precision})
        one = replace(drawing, config=CONFIG.model_copy(update={"sampler": sampler}))
        for has in (False, True):
            monkeypatch.setattr("cascade.model.precision.computes_bf16", lambda _, has=has: has)
            keys[precision, has] = one.key()
    assert keys["auto", False] == keys["fp32", False] == keys["fp32", True]
    assert keys["auto", True] == keys["bf16", True] == keys["bf16", False]
    assert keys["auto", False] != keys["auto", True]


def test_prompts_take_turns(tmp_path: Path, tiny_cascade: Path, drawing: Drawing) -> None:
    in_scenes = replace(drawing, prompts=("a dog", "a dog in snow"))
    cascade = Cascade.load(tiny_cascade)
    tables = prompt_tables(cascade.encoder, ["a dog", "a dog in snow"], cascade.configs)
    alone = read_pictures(make_pictures(drawing, tables, tmp_path))
    mixed = read_pictures(make_pictures(in_scenes, tables, tmp_path))
    # A longer prompt in the batch pads the others, whose sums then round differently on some CPUs:
    # one grey level. Another prompt moves pixels by a hundred.
    same = [
        np.allclose(one, other, rtol=0, atol=1) for one, other in zip(alone, mixed, strict=True)
    ]
    assert same == [True, False, True, False, True]


def test_the_class_is_shown_in_scenes_where_a_recipe_wants_it() -> None:
    values = RECIPES["paper"].model_dump()
    values["scenes"] = [{"phrase": "in the snow", "prompt": "snow"}]
    assert Recipe.model_validate(values).class_prompts("a dog") == ("a dog",)
    values["prior"]["in_scenes"] = True
    recipe = Recipe.model_validate(values)
    assert recipe.class_prompts("a dog") == ("a dog", "a dog in the snow")
    assert recipe.class_prompts("a dog", ["a red dog"])[2:] == ("a dog", "a red dog")
    with pytest.raises(UserError, match="need a list of scenes"):
        Recipe.parse(values | {"scenes": []}, "a test")


def test_super_resolution_enlarges_by_its_own_sampler(
    tmp_path: Path,
    tiny_cascade: Path,
    drawing: Drawing,
    stages: tuple[Stage, Stage],
    tables: Tables,
) -> None:
    cascade = Cascade.load(tiny_cascade)
    both = replace(drawing, stages=stages)
    paths = make_pictures(both, tables, tmp_path)
    seeds = [derive_seed(3, "class image", index) for index in range(5)]
    samplers = dict(zip(("base16", "sr32"), both.samplers(), strict=True))
    pictures = cascade.sample("a dog", seeds, samplers=samplers, batch_size=2)
    assert pictures.images[0].size == (32, 32)
    # The base's pictures go on unrounded in both: the same work in the same batches.
    assert _pixels(read_pictures(paths)) == _pixels(to_pil(pictures.tensor))


def test_guidance_is_switched_off_wherever_the_recipe_has_no_sampler_of_its_own(
    drawing: Drawing, stages: tuple[Stage, Stage]
) -> None:
    guided = [
        stage.with_network(
            stage.network,
            stage.config.model_copy(
                update={"sampler": stage.config.sampler.model_copy(update={"guidance": 4.0})}
            ),
        )
        for stage in stages
    ]
    both = replace(drawing, stages=tuple(guided))
    assert [sampler.guidance for sampler in both.samplers()] == [2.0, 1.0]
    by_itself = replace(both, config=CONFIG.model_copy(update={"sampler": None}))
    assert [sampler.guidance for sampler in by_itself.samplers()] == [1.0, 1.0]
    assert by_itself.samplers()[1].steps == stages[1].config.sampler.steps


def test_what_a_killed_run_left_is_swept(tmp_path: Path, drawing: Drawing, tables: Tables) -> None:
    place = tmp_path / drawing.key()
    place.mkdir()
    for name, age in ((".000001.png.77.partial", 3600), (".000002.png.78.partial", 0)):
        (place / name).write_bytes(b"half")
        os.utime(place / name, (time.time() - age,) * 2)
    make_pictures(drawing, tables, tmp_path)
    # Another run may be writing what is new.
    assert [path.name for path in place.glob(".*")] == [".000002.png.78.partial"]


def test_pictures_of_ones_own_are_found_and_nothing_else_is(tmp_path: Path, photos: Path) -> None:
    own = own_class_images(photos, [], 64)
    assert [path.name for path in own.pictures] == ["0.png", "1.png", "2.png", "3.png"]
    (tmp_path / "README.txt").write_text("class images")
    (tmp_path / "a set").mkdir()
    for nowhere in (None, tmp_path / "missing", tmp_path / "a set"):
        assert own_class_images(nowhere, [], 64) == SortedFiles()
    assert own_class_images(tmp_path, [], 64).pictures == ()  # a folder of sets, with a note


def test_pictures_of_ones_own_are_made_small_one_after_another(
    tmp_path: Path, stages: tuple[Stage, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        Image.effect_noise((1600, 1200), 50).save(tmp_path / f"{number}.jpg")
    held: list[weakref.ref[Image.Image]] = []

    def one(path: Path, least_side: int) -> Image.Image:
        assert not [image for image in held if image() is not None]
        image = read_image(path, least_side)
        assert min(image.size) <= 2 * least_side or image.width == 200  # an eighth at least
        held.append(weakref.ref(image))
        return image

    monkeypatch.setattr(module, "read_image", one)
    own = own_class_images(tmp_path, [], 32)
    for stage in stages:
        squares = read_squares(own.pictures, stage.config)
        assert [image.size for image in squares] == [(stage.config.size,) * 2] * 4
    assert len(held) == 12


def test_a_damaged_class_image_is_named(tmp_path: Path, drawing: Drawing, tables: Tables) -> None:
    paths = make_pictures(drawing, tables, tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:40])
    with pytest.raises(UserError, match=r"000003\.png cannot be read"):
        read_pictures(paths)


def test_the_users_cache_is_the_default_place(
    tmp_path: Path, drawing: Drawing, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = make_pictures(drawing, tables, None)
    assert paths[0].parent == tmp_path / "dreamcascade" / "class-images" / drawing.key()
