"""The cut-out subject in scenes, and how much the pixels of a photo count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cascade.config.dreambooth import SceneRowsConfig
from cascade.config.stage import StageConfig
from cascade.data.images import resize, to_tensor
from cascade.dreambooth.batches import (
    Concept,
    DreamBoothSamples,
    PixelWeighting,
    pixel_weights,
    presized,
)
from cascade.dreambooth.compose import Cutout, InScenes, cut_out, set_into

SUBJECT = (200, 40, 20)
SCENES = tuple(Image.new("RGB", (32, 32), (0, 0, 10 * number)) for number in range(6))
EMPTY = Image.new("RGB", (64, 64))
PROMPTS = ("a zug dog on the beach", "a zug dog in the snow", "a zug dog in space")


def _photo(box: tuple[int, int, int, int]) -> tuple[Image.Image, Image.Image]:
    """A green photo with a red subject, and its mask."""
    photo, mask = Image.new("RGB", (96, 64), (0, 220, 0)), Image.new("L", (96, 64))
    ImageDraw.Draw(photo).rectangle(box, fill=SUBJECT)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return photo, mask


PAIRS = tuple(_photo((20 + 4 * i, 12, 59 + 4 * i, 51)) for i in range(3))
PHOTOS, MASKS = (tuple(pair[i] for pair in PAIRS) for i in range(2))
ROWS = SceneRowsConfig(share=0.6, least_size=0.3, largest_size=0.8)
PLAIN = Concept("instance", PHOTOS, ("a zug dog",), flip=True)
PIXELS = PixelWeighting(MASKS, least=0.1, unmasked=0.25)


def _in_scenes(side: int) -> InScenes:
    cutouts = tuple(cut_out(photo, mask, side) for photo, mask in PAIRS)
    return InScenes(ROWS, cutouts, tuple(resize(s, side, "bicubic") for s in SCENES), PROMPTS)


def test_a_cut_out_is_the_subject_within_its_bounds() -> None:
    cutout = cut_out(*PAIRS[0], 100)
    assert cutout.image.size == (40, 40)
    assert cutout.cut == (False,) * 4
    assert cutout.image.getpixel((0, 0)) == (*SUBJECT, 255)
    assert cut_out(*PAIRS[0], 20).image.size == (20, 20)
    assert cut_out(*_photo((0, 30, 40, 63)), 100).cut == (True, False, False, True)


def _shown(picture: Image.Image) -> np.ndarray:
    """Where the picture is the subject's colour."""
    return np.asarray(picture)[..., 0] > 100


def test_the_subject_is_inside_and_the_scene_outside() -> None:
    cutout = cut_out(*PAIRS[0], 64)
    noise, none = Image.effect_noise((64, 64), 60), Image.new("L", (64, 64))
    scene = Image.merge("RGB", (none, noise, noise))
    for seed in range(40):
        picture, mask = set_into(scene, cutout, 0.5, 1.0, np.random.default_rng(seed))
        shown = _shown(picture)
        untouched = np.asarray(mask) == 0
        assert (np.asarray(picture)[untouched] == np.asarray(scene)[untouched]).all()
        rows, columns = np.nonzero(shown)
        assert (np.ptp(rows), np.ptp(columns)) == (31, 31)  # half of the side, a square
        inner = np.asarray(picture)[shown & np.roll(shown, 2, 0) & np.roll(shown, -2, 0)]
        assert (abs(inner.astype(int) - SUBJECT) <= 60).all()  # softened at the edge only
        outside = np.ones_like(shown)
        outside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = False
        assert (np.asarray(picture)[outside] == np.asarray(scene)[outside]).all()
        # No halo: the photo's green is nowhere.
        changed = np.asarray(picture)[~outside]
        assert changed[:, 1].max() <= np.asarray(scene)[..., 1].max()


def test_it_stands_anywhere_across_and_rather_low() -> None:
    cutout = cut_out(*PAIRS[0], 64)
    feet, lefts = [], []
    for seed in range(100):
        shown = _shown(set_into(EMPTY, cutout, 0.3, 1.0, np.random.default_rng(seed))[0])
        rows, columns = np.nonzero(shown)
        feet.append(int(rows.max()))
        lefts.append(int(columns.min()))
    assert min(lefts) < 6
    assert max(lefts) > 38  # of 45
    assert 42 <= min(feet) < 48
    assert 58 < max(feet) <= 63


def test_without_spread_it_stands_in_the_middle() -> None:
    cutout = cut_out(*PAIRS[0], 64)
    for spread, least in ((0.0, 0), (0.5, 8)):
        lefts = set()
        for seed in range(60):
            shown = _shown(set_into(EMPTY, cutout, 0.5, spread, np.random.default_rng(seed))[0])
            lefts.add(int(np.nonzero(shown)[1].min()))
        assert all(abs(left - 16) <= spread * 17 for left in lefts)
        assert max(lefts) - min(lefts) >= least


@pytest.mark.parametrize(
    ("cut", "edges"),
    [
        ((False, False, False, True), {"bottom"}),
        ((True, False, False, False), {"left"}),
        ((False, True, True, False), {"top", "right"}),
        ((True, False, True, True), {"bottom"}),  # cut off on both sides it stands anywhere
    ],
)
def test_where_its_photo_cut_it_off_it_stays_at_the_edge(
    cut: tuple[bool, bool, bool, bool], edges: set[str]
) -> None:
    cutout = Cutout(cut_out(*PAIRS[0], 64).image, cut)
    touched = []
    for seed in range(20):
        shown = _shown(set_into(EMPTY, cutout, 0.4, 1.0, np.random.default_rng(seed))[0])
        sides = {
            "left": shown[:, 0],
            "top": shown[0],
            "right": shown[:, -1],
            "bottom": shown[-1],
        }
        touched.append({name for name, line in sides.items() if line.any()})
    assert set.intersection(*touched) == edges


def test_it_is_never_enlarged() -> None:
    small = cut_out(*_photo((40, 20, 49, 29)), 64)
    picture, _ = set_into(EMPTY, small, 0.9, 1.0, np.random.default_rng(0))
    assert _shown(picture).sum() <= 100


def _blue(row: torch.Tensor) -> int:
    """The scene of a row, told by its blue beside the subject."""
    return round(float((row[2][row[0] == -1].median() + 1) * 127.5) / 10)


def test_a_share_of_the_rows_shows_the_subject_in_scenes_that_the_caption_names(
    base: StageConfig,
) -> None:
    kind = replace(PLAIN, in_scenes=_in_scenes(16))
    batch = DreamBoothSamples(base, (kind,), seed=0).rows(range(600))
    of_scenes = [prompt != "a zug dog" for prompt in batch.prompts]
    # A binomial of 600 draws at 0.6 has a deviation of 0.02; four of them.
    assert abs(sum(of_scenes) / 600 - 0.6) < 0.08
    for row, prompt, in_scene in zip(batch.images, batch.prompts, of_scenes, strict=True):
        green = float(row[1].max())
        assert (green > 0.5) != in_scene  # the photos' ground; no scene has it
        assert bool((row[0] > 0.2).any())  # the subject is in both
        if in_scene:
            assert prompt == PROMPTS[_blue(row) % 3]
    scenes = {_blue(row) for row, one in zip(batch.images, of_scenes, strict=True) if one}
    assert scenes == set(range(6))
    assert batch.pixel_weights is None
    assert batch.terms == ("instance",) * 600


def test_the_photos_rows_are_those_of_plain_dreambooth(super_resolution: StageConfig) -> None:
    masked = replace(PLAIN, pixels=PIXELS, in_scenes=_in_scenes(32), center_crop=False)
    plain = replace(PLAIN, center_crop=False)
    rows = [
        DreamBoothSamples(super_resolution, (kind,), seed=3).rows(range(60))
        for kind in (masked, plain)
    ]
    assert rows[0].seeds == rows[1].seeds
    same = [prompt == "a zug dog" for prompt in rows[0].prompts]
    assert 0 < sum(same) < 60
    for ours, theirs in ((rows[0].images, rows[1].images), (rows[0].low_res, rows[1].low_res)):
        assert [torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)] == same
    assert rows[1].pixel_weights is None


def test_rows_with_masks_are_a_function_of_seed_and_position(super_resolution: StageConfig) -> None:
    kind = presized(replace(PLAIN, pixels=PIXELS, in_scenes=_in_scenes(32)), super_resolution)
    samples = DreamBoothSamples(super_resolution, (kind,), seed=0)
    together = samples.rows(range(40))
    for position in range(40):
        alone = samples.rows([position])
        assert alone.prompts[0] == together.prompts[position]
        for name in ("images", "low_res", "pixel_weights"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[position])
    other = DreamBoothSamples(super_resolution, (kind,), seed=1).rows(range(40))
    assert not torch.equal(other.images, together.images)


def test_super_resolution_sees_true_pairs_of_the_composed_picture(
    super_resolution: StageConfig,
) -> None:
    whole = super_resolution.low_res.model_copy(update={"crop": None})
    stage = super_resolution.model_copy(update={"low_res": whole})
    scenes = replace(_in_scenes(32), config=ROWS.model_copy(update={"share": 1.0}))
    batch = DreamBoothSamples(stage, (replace(PLAIN, in_scenes=scenes),), seed=0).rows(range(8))
    for large, small in zip(batch.images, batch.low_res, strict=True):
        pixels = large.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert torch.equal(small, to_tensor(resize(Image.fromarray(pixels), 16, stage.resize)))


def test_weights_are_the_mask_above_a_least_value_and_one_on_average() -> None:
    mask = Image.fromarray(np.array([[0, 0, 10, 255], [0, 0, 0, 51]], np.uint8))
    weights = pixel_weights(mask, 0.1)
    raw = torch.tensor([[[0.1, 0.1, 0.1, 1.0], [0.1, 0.1, 0.1, 0.2]]])
    torch.testing.assert_close(weights, raw / raw.mean())
    assert float(weights.mean()) == pytest.approx(1.0, rel=1e-6)
    assert torch.equal(pixel_weights(mask, 1.0), torch.ones(1, 2, 4))


@pytest.mark.parametrize("center_crop", [True, False])
def test_weights_go_with_the_pixels(base: StageConfig, center_crop: bool) -> None:
    pixels = replace(PIXELS, unmasked=0.0)
    kind = replace(PLAIN, pixels=pixels, center_crop=center_crop)
    for one in (kind, presized(kind, base)):
        batch = DreamBoothSamples(base, (one,), seed=0).rows(range(40))
        assert batch.pixel_weights.shape == (40, 1, 16, 16)
        torch.testing.assert_close(batch.pixel_weights.mean(dim=(1, 2, 3)), torch.ones(40))
        for row, weights in zip(batch.images, batch.pixel_weights, strict=True):
            subject = row[0] > 0.5
            ground = row[1] > 0.7
            assert float(weights[0][subject].min()) > 5 * float(weights[0][ground].max())


def test_a_crop_takes_its_weights_from_the_whole_picture(super_resolution: StageConfig) -> None:
    kind = replace(PLAIN, pixels=replace(PIXELS, unmasked=0.0), flip=False)
    batch = DreamBoothSamples(super_resolution, (kind,), seed=0).rows(range(60))
    assert batch.pixel_weights.shape == (60, 1, 16, 16)
    means = batch.pixel_weights.mean(dim=(1, 2, 3))
    assert float(means.max() - means.min()) > 0.3  # more of the subject counts more
    levels = batch.pixel_weights.amin(dim=(1, 2, 3))
    assert float(levels.min()) < 0.3


def test_a_share_of_the_rows_counts_all_pixels_alike(base: StageConfig) -> None:
    batch = DreamBoothSamples(base, (replace(PLAIN, pixels=PIXELS),), seed=0).rows(range(400))
    alike = [torch.equal(row, torch.ones_like(row)) for row in batch.pixel_weights]
    # A binomial of 400 draws at 0.25 has a deviation of 0.022; four of them.
    assert abs(sum(alike) / 400 - 0.25) < 0.09


@pytest.mark.parametrize("scene_weight", [1.0, 0.25])
def test_the_scene_counts_less_where_that_is_set(base: StageConfig, scene_weight: float) -> None:
    config = ROWS.model_copy(update={"share": 1.0, "scene_weight": scene_weight})
    black = tuple(Image.new("RGB", (16, 16)) for _ in range(3))
    in_scenes = replace(_in_scenes(16), config=config, scenes=black)
    kind = replace(PLAIN, pixels=PIXELS, in_scenes=in_scenes)
    batch = DreamBoothSamples(base, (kind,), seed=0).rows(range(40))
    torch.testing.assert_close(batch.pixel_weights.mean(dim=(1, 2, 3)), torch.ones(40))
    red = torch.tensor(SUBJECT[0] / 127.5 - 1)
    for row, weights in zip(batch.images, batch.pixel_weights[:, 0], strict=True):
        subject, scene = row[0] == red, row[0] == -1
        assert subject.any()
        assert scene.any()
        torch.testing.assert_close(
            weights[scene], weights[subject].max().mul(scene_weight).expand(int(scene.sum()))
        )


def test_class_images_count_all_their_pixels(base: StageConfig) -> None:
    kinds = (replace(PLAIN, pixels=PIXELS), Concept("prior", SCENES, ("a dog",)))
    batch = DreamBoothSamples(base, kinds, seed=0).rows(range(40))
    for weights, prompt in zip(batch.pixel_weights, batch.prompts, strict=True):
        if prompt == "a dog":
            assert torch.equal(weights, torch.ones(1, 16, 16))
    assert batch.to(torch.device("cpu")).pixel_weights is batch.pixel_weights
