"""What a row shows of a picture: the pixels of the whole, computed where they are needed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cascade.config.stage import LowResConfig, ResizeKernel, StageConfig
from cascade.data.cutting import Window, cut, enough
from cascade_bench.few_steps import TINY

UNET = TINY.unet
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 211, 3), dtype=np.uint8))


def stage(size: int, kernel: ResizeKernel, low: int | None = None, crop: int | None = None) -> Any:
    """A base stage, or one that enlarges."""
    low_res = None if low is None else LowResConfig(size=low, crop=crop)
    unet = UNET.model_copy(update={"low_res": low is not None})
    return StageConfig(name="it", size=size, resize=kernel, unet=unet, low_res=low_res)


KERNELS = st.sampled_from(["bicubic", "bilinear", "lanczos", "box"])


@given(kernel=KERNELS, top=st.integers(0, 8), left=st.integers(0, 8), whole=st.booleans())
def test_a_crop_has_the_pixels_that_the_whole_picture_has_there(
    kernel: ResizeKernel, top: int, left: int, whole: bool
) -> None:
    """The window's edges are kept in float32: a level of 255 where they round to another."""
    window = Window(0.0, 0.0, 150.0, 150.0) if whole else Window(20.5, 7.25, 130.5, 117.25)
    cropped = cut(stage(64, kernel, 16, 32), NOISE, 1.0, window, (64, 64), (top, left))
    high, low = cut(stage(64, kernel, 16), NOISE, 1.0, window, (64, 64), (0, 0))
    assert low is not None
    assert cropped[1] is not None
    expected = (
        high[4 * top : 4 * top + 32, 4 * left : 4 * left + 32],
        low[top : top + 8, left : left + 8],
    )
    for found, wanted in zip(cropped, expected, strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("kernel", ["bicubic", "box"])
def test_a_picture_of_the_stage_s_size_is_not_touched(kernel: ResizeKernel) -> None:
    picture = NOISE.crop((0, 0, 64, 64))
    high, _ = cut(stage(64, kernel), picture, 1.0, Window(0.0, 0.0, 64.0, 64.0), (64, 64), (0, 0))
    assert np.array_equal(high, np.asarray(picture))
    part, _ = cut(stage(32, kernel), picture, 1.0, Window(8.0, 4.0, 40.0, 36.0), (32, 32), (0, 0))
    assert np.array_equal(part, np.asarray(picture)[4:36, 8:40])


def test_a_window_of_another_shape_becomes_a_picture_of_it() -> None:
    wide, _ = cut(
        stage(64, "bicubic"), NOISE, 1.0, Window(0.0, 0.0, 200.0, 100.0), (80, 40), (0, 0)
    )
    assert wide.shape == (40, 80, 3)


@given(width=st.integers(64, 6000), height=st.integers(64, 6000), share=st.floats(0.05, 1.0))
def test_enough_is_twice_the_side_at_least(width: int, height: int, share: float) -> None:
    side = share * min(width, height)
    least = enough(64, Window(0.0, 0.0, side, side), (width, height))
    # Decoded with a shorter side of `least`, the window has twice the stage's pixels.
    assert least / min(width, height) * side >= 128 * (1 - 1e-12)
