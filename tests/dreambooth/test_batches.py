"""The rows DreamBooth trains on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cascade.config.stage import StageConfig
from cascade.data.images import resize, square, to_tensor
from cascade.diffusion.noise import derive_seed
from cascade.dreambooth.batches import Concept, DreamBoothSamples, presized


def _picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


PHOTOS = tuple(_picture(seed) for seed in range(4))
CLASS = tuple(_picture(seed) for seed in range(10, 17))
INSTANCE = Concept("instance", PHOTOS, ("a zug dog",))
PRIOR = Concept("prior", CLASS, ("a dog",), weight=0.5)


def _whole(stage: StageConfig) -> StageConfig:
    """The stage, trained on whole pictures."""
    return stage.model_copy(update={"low_res": stage.low_res.model_copy(update={"crop": None})})


def _indices(rows: torch.Tensor, pictures: tuple[Image.Image, ...], size: int) -> list[int]:
    """Which of the pictures each row shows."""
    known = [to_tensor(resize(square(picture), size, "bicubic")) for picture in pictures]
    return [next(i for i, one in enumerate(known) if torch.equal(one, row)) for row in rows]


def test_a_position_is_one_photo_and_one_class_image(base: StageConfig) -> None:
    batch = DreamBoothSamples(base, (INSTANCE, PRIOR), seed=0).rows(range(3))
    assert batch.positions == 3
    assert batch.images.shape == (6, 3, 16, 16)
    assert batch.low_res is None
    assert batch.prompts == ("a zug dog",) * 3 + ("a dog",) * 3
    assert batch.terms == ("instance",) * 3 + ("prior",) * 3
    assert batch.weights.tolist() == [1.0] * 3 + [0.5] * 3
    assert len(set(batch.seeds)) == 6
    _indices(batch.images[:3], PHOTOS, 16)
    _indices(batch.images[3:], CLASS, 16)


def test_without_a_prior_there_are_only_photos(base: StageConfig) -> None:
    batch = DreamBoothSamples(base, (INSTANCE,), seed=0).rows(range(2))
    assert batch.terms == ("instance", "instance")
    assert len(batch.seeds) == 2


def test_every_picture_is_seen_once_an_epoch(base: StageConfig) -> None:
    samples = DreamBoothSamples(base, (INSTANCE, PRIOR), seed=0)
    batch = samples.rows(range(28))
    shown = _indices(batch.images[:28], PHOTOS, 16)
    epochs = [shown[first : first + 4] for first in range(0, 28, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    prior = _indices(batch.images[28:], CLASS, 16)
    assert all(sorted(prior[first : first + 7]) == list(range(7)) for first in range(0, 28, 7))


def test_a_row_is_a_function_of_seed_and_position(super_resolution: StageConfig) -> None:
    instance = Concept("instance", PHOTOS, ("a zug dog",), flip=True, center_crop=False)
    samples = DreamBoothSamples(super_resolution, (instance, PRIOR), seed=0)
    together, alone = samples.rows(range(4, 8)), samples.rows([6])
    for row, single in ((2, 0), (6, 1)):
        assert torch.equal(together.images[row], alone.images[single])
        assert torch.equal(together.low_res[row], alone.low_res[single])
        assert together.seeds[row] == alone.seeds[single]
    other = DreamBoothSamples(super_resolution, (instance, PRIOR), seed=1).rows([6])
    assert not torch.equal(other.images, alone.images)
    assert set(other.seeds).isdisjoint(alone.seeds)


def test_what_is_random_comes_from_streams_that_stay(super_resolution: StageConfig) -> None:
    """A run that began before an update goes on with the same rows after it."""
    kind = replace(INSTANCE, flip=True, center_crop=False, caption_dropout=0.5)
    batch = DreamBoothSamples(super_resolution, (kind,), seed=3).rows(range(8, 16))
    assert batch.pixel_weights is None

    def rng(purpose: str, position: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(3, "instance", purpose, position))

    for row, position in enumerate(range(8, 16)):
        epoch, place = divmod(position, 4)
        order = np.random.default_rng(derive_seed(3, "instance", "epoch", epoch)).permutation(4)
        photo, draws = PHOTOS[order[place]], rng("row", position)  # 48 x 40
        left, top = draws.integers(0, 9), draws.integers(0, 1)
        picture = resize(photo.crop((left, top, left + 40, top + 40)), 32, "bicubic")
        picture = ImageOps.mirror(picture) if draws.random() < 0.5 else picture
        top, left = 2 * draws.integers(0, 9, size=2)
        crop = to_tensor(picture)[:, top : top + 16, left : left + 16]
        assert torch.equal(batch.images[row], crop)
        dropped = rng("caption", position).random() < 0.5
        assert batch.prompts[row] == (None if dropped else "a zug dog")
        assert batch.seeds[row] == derive_seed(3, "instance", "noise", position)


@pytest.mark.parametrize("kernel", ["bicubic", "box"])
def test_super_resolution_sees_true_pairs_by_the_checkpoints_kernel(
    super_resolution: StageConfig, kernel: str
) -> None:
    stage = _whole(super_resolution).model_copy(update={"resize": kernel})
    batch = DreamBoothSamples(stage, (INSTANCE, PRIOR), seed=0).rows(range(4))
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.low_res.shape == (8, 3, 16, 16)
    high = {
        resize(square(picture), 32, kernel).tobytes(): resize(square(picture), 32, kernel)
        for picture in (*PHOTOS, *CLASS)
    }
    for large, small in zip(batch.images, batch.low_res, strict=True):
        pixels = large.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = high[pixels.tobytes()]
        assert torch.equal(small, to_tensor(resize(picture, 16, kernel)))


def test_crops_of_a_pair_are_aligned(super_resolution: StageConfig) -> None:
    one = Concept("instance", PHOTOS[:1], ("a zug dog",))
    batch = DreamBoothSamples(super_resolution, (one,), seed=0).rows(range(6))
    picture = resize(square(PHOTOS[0]), 32, super_resolution.resize)
    high, low = to_tensor(picture), to_tensor(resize(picture, 16, super_resolution.resize))
    corners = set()
    for large, small in zip(batch.images, batch.low_res, strict=True):
        at = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.equal(small, low[:, top : top + 8, left : left + 8])
        ]
        top, left = at[0]
        corners.add((top, left))
        assert torch.equal(large, high[:, 2 * top : 2 * top + 16, 2 * left : 2 * left + 16])
    assert len(corners) > 1


def test_flip_mirrors_about_half_of_the_rows(base: StageConfig) -> None:
    one = Concept("instance", PHOTOS[:1], ("a zug dog",), flip=True)
    batch = DreamBoothSamples(base, (one,), seed=0).rows(range(40))
    plain = resize(square(PHOTOS[0]), 16, "bicubic")
    mirrored = [torch.equal(row, to_tensor(ImageOps.mirror(plain))) for row in batch.images]
    straight = [torch.equal(row, to_tensor(plain)) for row in batch.images]
    assert all(a != b for a, b in zip(mirrored, straight, strict=True))
    assert 8 <= sum(mirrored) <= 32  # four standard deviations of a fair coin


def test_random_squares_move_over_the_photo(base: StageConfig) -> None:
    ramp = np.tile(np.arange(96, dtype=np.uint8)[None, :, None], (32, 1, 3))
    one = Concept("instance", (Image.fromarray(ramp),), ("a zug dog",), center_crop=False)
    batch = DreamBoothSamples(base, (one,), seed=0).rows(range(12))
    # A square 32 wide at `left` of the ramp has the mean grey left + 15.5.
    lefts = (batch.images.mean(dim=(1, 2, 3)) + 1) * 127.5 - 15.5
    assert lefts.min() >= -1
    assert lefts.max() <= 65
    assert len(lefts.round().unique()) > 6


@pytest.mark.parametrize("center_crop", [True, False])
def test_pictures_made_small_beforehand_give_the_same_rows(
    super_resolution: StageConfig, center_crop: bool
) -> None:
    stage = _whole(super_resolution)
    kind = replace(INSTANCE, center_crop=center_crop, flip=True)
    small = presized(kind, stage)
    assert all(image.size == (32, 32) for image in small.images) is center_crop
    rows = [DreamBoothSamples(stage, (one,), seed=0).rows(range(8)) for one in (kind, small)]
    assert torch.equal(rows[0].images, rows[1].images)
    assert torch.equal(rows[0].low_res, rows[1].low_res)


def test_a_class_image_keeps_its_prompt_wherever_it_stands(base: StageConfig) -> None:
    kind = replace(PRIOR, prompts=("a dog", "a dog on the beach", "a dog in the snow"))
    batch = DreamBoothSamples(base, (kind,), seed=0).rows(range(3 * len(CLASS)))
    shown = _indices(batch.images, CLASS, 16)
    assert shown != sorted(shown)  # they are shuffled
    assert batch.prompts == tuple(kind.prompts[number % 3] for number in shown)


def test_class_images_lose_their_prompt_at_the_given_rate(base: StageConfig) -> None:
    kinds = (INSTANCE, replace(PRIOR, caption_dropout=0.25))
    samples = DreamBoothSamples(base, kinds, seed=0)
    batch = samples.rows(range(400))
    assert batch.prompts[:400] == INSTANCE.prompts * 400  # the subject is always named
    # A binomial of 400 draws at 0.25 has a deviation of 0.022; four of them.
    assert abs(batch.prompts[400:].count(None) / 400 - 0.25) < 0.09
    assert samples.rows([7]).prompts[1] == batch.prompts[407]  # a function of the position
    # All else is as without: the draw is its own.
    whole = DreamBoothSamples(base, (INSTANCE, PRIOR), seed=0).rows(range(20))
    assert torch.equal(samples.rows(range(20)).images, whole.images)
