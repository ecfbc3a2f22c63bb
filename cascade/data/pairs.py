"""Pictures as a stage is trained on them: with low-resolution twins, cropped.

Shapes: `C H W` pixels of the high resolution, `C h w` of the low.
"""

import numpy as np
from PIL import Image
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.data.images import resize, to_tensor

Place = tuple[int, int]
"""Top and left of a crop, in low-resolution pixels."""


def make_pair(
    stage: StageConfig, picture: Image.Image, place: Place
) -> tuple[Tensor, Tensor | None]:
    """The high-resolution picture and its low-resolution twin, cropped as the stage trains.

    The twin is made from the whole picture with the checkpoint's own resize kernel and cropped at
    the same place (Imagen section 2.5), so that a crop has the low-resolution pixels that the
    whole picture has there.

    Returns:
        C H W in [-1, 1], and C h w or None for a base stage.
    """
    return crop_pair(stage, *whole_pair(stage, picture), place)


def draw_place(stage: StageConfig, rng: np.random.Generator) -> Place:
    """Draw where a crop begins."""
    top, left = (int(offset) for offset in rng.integers(0, crop_places(stage), size=2))
    return top, left


def crop_sides(stage: StageConfig) -> tuple[int, int]:
    """The sides of the pictures that a stage is trained on, high and low resolution, pixels.

    A base stage has no low resolution; its low side is its side.
    """
    if stage.low_res is None:
        return stage.size, stage.size
    high = stage.low_res.crop or stage.size
    return high, high * stage.low_res.size // stage.size


def crop_places(stage: StageConfig) -> int:
    """At how many places a stage's crop may begin, along one side."""
    whole = stage.size if stage.low_res is None else stage.low_res.size
    return whole - crop_sides(stage)[1] + 1


def whole_pair(stage: StageConfig, picture: Image.Image) -> tuple[Tensor, Tensor | None]:
    """The picture and its low-resolution twin, C H W and C h w; None for a base stage."""
    if stage.low_res is None:
        return to_tensor(picture), None
    return to_tensor(picture), to_tensor(resize(picture, stage.low_res.size, stage.resize))


def crop_pair(
    stage: StageConfig, high: Tensor, low: Tensor | None, place: Place
) -> tuple[Tensor, Tensor | None]:
    """Cut the same crop out of both."""
    if low is None:
        return high, None
    (top, left), side = place, crop_sides(stage)[1]
    return crop_high(stage, high, place), low[:, top : top + side, left : left + side]


def crop_high(stage: StageConfig, high: Tensor, place: Place) -> Tensor:
    """Cut the crop out of pixels of the high resolution, C H W."""
    if stage.low_res is None:
        return high
    side, _ = crop_sides(stage)
    top, left = (offset * (stage.size // stage.low_res.size) for offset in place)
    return high[:, top : top + side, left : left + side]
