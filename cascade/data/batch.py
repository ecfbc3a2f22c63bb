"""Training batches, and the crops that their rows are made of.

Shapes: `B` rows, `C H W` pixels of the high resolution, `C h w` of the low, in [-1, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.data.images import normalised, resize, to_tensor
from cascade.diffusion.noise import to_device
from cascade.text.packed import PackedTexts

Offset = tuple[int, int]
"""Top and left of a crop, in low-resolution pixels."""


@dataclass(frozen=True)
class Batch:
    """Rows of pictures with their captions, weights and noise seeds.

    Attributes:
        images: B C H W, the pictures the stage is to make; uint8 until they are on their device.
        low_res: B C h w, their clean low-resolution twins, or None for a base stage.
        prompts: B captions; None is the unconditional text.
        seeds: B seeds of each row's timestep and noise.
        weights: B, the factor of each row's loss; prior preservation is a weight.
        terms: B names of the loss term a row belongs to, for the report.
        positions: how many positions of the stream the rows stand for.
        pixel_weights: B 1 H W, the factor of each pixel's loss, about 1 on average; None is 1.
        texts: the prompts' embeddings, where whoever made the rows had them at hand.
        skipped: pictures of no use, which others stand in for: where they are, and why.
    """

    images: Tensor
    low_res: Tensor | None
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]
    weights: Tensor
    terms: tuple[str, ...]
    positions: int
    pixel_weights: Tensor | None = None
    texts: PackedTexts | None = None
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """Return the same rows on another device, pixels in [-1, 1]; see `to_device`."""
        moved = self._with(lambda tensor: to_device(tensor, device))
        low_res = None if moved.low_res is None else normalised(moved.low_res)
        return replace(moved, images=normalised(moved.images), low_res=low_res)

    def pin_memory(self) -> "Batch":
        """Return the same rows where a GPU copies from by itself; `DataLoader` asks for it."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the same rows with each of their tensors changed."""
        changed: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                changed[name] = change(value)
            elif isinstance(value, PackedTexts):
                changed[name] = replace(value, tokens=change(value.tokens))
        return replace(self, **changed)


def concatenate(first: Batch, second: Batch) -> Batch:
    """Put two kinds of rows of the same positions into one batch (instance and prior rows).

    Raises:
        ValueError: one has its texts' embeddings and the other has not.
    """
    low_res = None
    if first.low_res is not None and second.low_res is not None:
        low_res = torch.cat([first.low_res, second.low_res])
    return Batch(
        images=torch.cat([first.images, second.images]),
        low_res=low_res,
        prompts=first.prompts + second.prompts,
        seeds=first.seeds + second.seeds,
        weights=torch.cat([first.weights, second.weights]),
        terms=first.terms + second.terms,
        positions=first.positions,
        pixel_weights=_both_weights(first, second),
        texts=_both_texts(first.texts, second.texts),
    )


def _both_weights(first: Batch, second: Batch) -> Tensor | None:
    if first.pixel_weights is None and second.pixel_weights is None:
        return None
    parts = [
        torch.ones_like(batch.images[:, :1]) if batch.pixel_weights is None else batch.pixel_weights
        for batch in (first, second)
    ]
    return torch.cat(parts)


def _both_texts(first: PackedTexts | None, second: PackedTexts | None) -> PackedTexts | None:
    if first is None and second is None:
        return None
    if first is None or second is None:
        raise ValueError("Only one of two batches has the embeddings of its texts.")
    return first.joined(second)


@lru_cache(maxsize=4)
def permutation(count: int, seed: int) -> np.ndarray:
    """Return a permutation of 0..count-1, a function of the seed."""
    return np.random.default_rng(seed).permutation(count)


def make_pair(
    stage: StageConfig, picture: Image.Image, offset: Offset
) -> tuple[Tensor, Tensor | None]:
    """Return a picture and its low-resolution twin, cropped as the stage trains.

    The twin is made from the whole picture with the checkpoint's own resize kernel and cropped at
    the same offset (Imagen section 2.5), so that a crop has the low-resolution pixels that the
    whole picture has there.

    Returns:
        C H W in [-1, 1], and C h w or None for a base stage.
    """
    return crop_pair(stage, *whole_pair(stage, picture), offset)


def draw_offset(stage: StageConfig, rng: np.random.Generator) -> Offset:
    """Draw where a crop begins."""
    top, left = (int(offset) for offset in rng.integers(0, crop_offsets(stage), size=2))
    return top, left


def crop_sides(stage: StageConfig) -> tuple[int, int]:
    """Return the sides of what a stage is trained on, high and low resolution, pixels.

    A base stage has no low resolution; its low side is its side.
    """
    if stage.low_res is None:
        return stage.size, stage.size
    high = stage.low_res.crop or stage.size
    return high, high * stage.low_res.size // stage.size


def crop_offsets(stage: StageConfig) -> int:
    """Return the number of offsets that a stage's crop may have along one side."""
    whole = stage.size if stage.low_res is None else stage.low_res.size
    return whole - crop_sides(stage)[1] + 1


def whole_pair(stage: StageConfig, picture: Image.Image) -> tuple[Tensor, Tensor | None]:
    """Return a picture and its low-resolution twin, C H W and C h w; None for a base stage."""
    if stage.low_res is None:
        return to_tensor(picture), None
    return to_tensor(picture), to_tensor(resize(picture, stage.low_res.size, stage.resize))


def crop_pair(
    stage: StageConfig, high: Tensor, low: Tensor | None, offset: Offset
) -> tuple[Tensor, Tensor | None]:
    """Cut the same crop out of both."""
    if low is None:
        return high, None
    (top, left), side = offset, crop_sides(stage)[1]
    return crop_high(stage, high, offset), low[:, top : top + side, left : left + side]


def crop_high(stage: StageConfig, high: Tensor, offset: Offset) -> Tensor:
    """Cut the crop out of pixels of the high resolution, C H W."""
    if stage.low_res is None:
        return high
    side, _ = crop_sides(stage)
    scale = stage.size // stage.low_res.size
    top, left = (scale * start for start in offset)
    return high[:, top : top + side, left : left + side]
