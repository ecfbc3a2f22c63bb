"""Rows gathered on a device are those that are made one by one, to the last bit."""

import numpy as np
import pytest
import torch

from cascade.config.data import RowConfig
from cascade.config.stage import LowResConfig, ResizeKernel, StageConfig
from cascade.data.array import CaptionedArray
from cascade.data.captioned import CaptionedSamples, Source
from cascade.data.images import resize, to_tensor
from cascade.data.resident import ResidentSamples, resident_bytes
from cascade_bench.few_steps import TINY

COUNT, SIZE = 300, 16  # more pictures than are copied at once
CPU = torch.device("cpu")
UNET = TINY.unet


def stage(crop: int | None = None, kernel: ResizeKernel | None = None) -> StageConfig:
    """A base stage, or with a kernel a super-resolution stage."""
    if kernel is None:
        return StageConfig(name="base", size=SIZE, unet=UNET)
    return StageConfig(
        name="sr",
        size=SIZE,
        resize=kernel,
        unet=UNET.model_copy(update={"low_res": True}),
        low_res=LowResConfig(size=4, crop=crop),
    )


STAGES = [stage(), stage(None, "bicubic"), stage(8, "lanczos"), stage(12, "box")]


@pytest.fixture(scope="module")
def data() -> CaptionedArray:
    """Noise, on which kernels overshoot; unequal numbers of captions."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIZE, SIZE), dtype=np.uint8)
    captions = tuple(tuple(f"{i} {j}" for j in range(1 + i % 3)) for i in range(COUNT))
    return CaptionedArray(images, captions)


def samples(data: CaptionedArray, config: StageConfig) -> CaptionedSamples:
    return CaptionedSamples(
        (Source(data, 1.0, (SIZE, SIZE)),), config, 3, RowConfig(caption_dropout=0.2)
    )


def check(data: CaptionedArray, config: StageConfig, device: torch.device) -> None:
    one_by_one = samples(data, config)
    resident = ResidentSamples(one_by_one, device)
    for positions in (range(64), range(COUNT - 5, COUNT + 5), [7 * COUNT + 1]):
        expected, batch = one_by_one.rows(positions).to(CPU), resident.rows(positions)
        assert batch.images.device.type == device.type
        back = batch.to(CPU)
        assert torch.equal(back.images, expected.images)
        assert (back.low_res is None) == (expected.low_res is None)
        if back.low_res is not None and expected.low_res is not None:
            assert torch.equal(back.low_res, expected.low_res)
        assert torch.equal(back.weights, expected.weights)
        assert (back.prompts, back.seeds) == (expected.prompts, expected.seeds)
        assert (back.terms, back.positions) == (expected.terms, expected.positions)


@pytest.mark.parametrize("config", STAGES, ids=["base", "whole", "crop", "large crop"])
def test_rows_are_those_made_one_by_one(data: CaptionedArray, config: StageConfig) -> None:
    check(data, config, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("config", STAGES, ids=["base", "whole", "crop", "large crop"])
def test_a_gpu_gathers_the_same_bits(data: CaptionedArray, config: StageConfig) -> None:
    check(data, config, torch.device("cuda"))


def test_a_mirrored_crop_has_the_mirrored_twin_s_pixels(data: CaptionedArray) -> None:
    source = samples(data, stage(8, "lanczos"))
    chosen, batch = source.decide(range(200)), source.rows(range(200)).to(CPU)
    assert batch.low_res is not None
    places = set()
    for row, one in enumerate(chosen):
        picture = data.picture(one.index)
        high, low = to_tensor(picture), to_tensor(resize(picture, 4, "lanczos"))
        if one.mirrored:
            high, low = high.flip(-1), low.flip(-1)
        top, left = one.top, one.left
        expected = high[:, 4 * top : 4 * top + 8, 4 * left : 4 * left + 8]
        assert torch.equal(batch.images[row], expected)
        assert torch.equal(batch.low_res[row], low[:, top : top + 2, left : left + 2])
        places.add((top, left, one.mirrored))
    assert len(places) == 3 * 3 * 2  # every place, mirrored and not


def test_it_takes_what_it_says(data: CaptionedArray) -> None:
    assert resident_bytes(samples(data, stage())) == COUNT * 3 * SIZE * SIZE
    assert resident_bytes(samples(data, stage(8, "box"))) == COUNT * 3 * (SIZE * SIZE + 4 * 4)
