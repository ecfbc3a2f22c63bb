"""The rows DreamBooth trains on: per position one photo and, beside it, one class image.

Shapes: `B` rows, `C H W` pixels; pictures in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.data.batch import (
    Batch,
    Offset,
    concatenate,
    crop_high,
    draw_offset,
    make_pair,
    permutation,
)
from cascade.data.images import Box, centred_square, resize
from cascade.diffusion.noise import derive_seed
from cascade.dreambooth.compose import InScenes


@dataclass(frozen=True)
class PixelWeighting:
    """Loss weights of an image's pixels.

    Attributes:
        masks: of the pictures, grey, of their sizes; 255 where a pixel counts fully.
        least: the least weight.
        unmasked: share of the rows whose pixels count alike.
    """

    masks: tuple[Image.Image, ...]
    least: float
    unmasked: float


@dataclass(frozen=True)
class Concept:
    """One concept of rows: the subject's photos, or the class images.

    Attributes:
        term: the loss term's name in the report, "instance" or "prior".
        images: the pictures, of any size.
        prompts: what they show, by turns: picture i shows number i modulo their count.
        weight: 1 for the subject, lambda for the prior (DreamBooth eq. 2).
        flip: mirror half of the rows.
        center_crop: take the centred square, else a random one.
        caption_dropout: share of rows that are given the unconditional text instead.
        pixels: None where all pixels count alike.
        in_scenes: a share of the rows shows what is cut out of the pictures instead.
    """

    term: str
    images: tuple[Image.Image, ...]
    prompts: tuple[str, ...]
    weight: float = 1.0
    flip: bool = False
    center_crop: bool = True
    caption_dropout: float = 0.0
    pixels: PixelWeighting | None = None
    in_scenes: InScenes | None = None


def presized(concept: Concept, stage: StageConfig) -> Concept:
    """Return the concept with its images resized beforehand, where every row takes one square.

    Rows made of it are the same; a photo has some hundred times the pixels, and each row would
    read them all again.
    """
    if not concept.center_crop:
        return concept
    boxes = [centred_square(image) for image in concept.images]
    small = [
        resize(image.crop(box), stage.size, stage.resize)
        for image, box in zip(concept.images, boxes, strict=True)
    ]
    if concept.pixels is None:
        return replace(concept, images=tuple(small))
    masks = [
        resize(mask.crop(box), stage.size, "box")
        for mask, box in zip(concept.pixels.masks, boxes, strict=True)
    ]
    pixels = replace(concept.pixels, masks=tuple(masks))
    return replace(concept, images=tuple(small), pixels=pixels)


@dataclass(frozen=True)
class _Row:
    high: Tensor
    low: Tensor | None
    weights: Tensor | None
    prompt: str | None


@dataclass(frozen=True)
class DreamBoothSamples:
    """Rows of one stage: at each position one row of every concept, each with its own noise.

    Every picture of a concept is seen once before one is seen again, as it is or cut out.
    """

    stage: StageConfig
    concepts: tuple[Concept, ...]
    seed: int

    def rows(self, positions: Sequence[int]) -> Batch:
        """Return the rows at these positions; see `cascade.data.stream`."""
        batch = self._rows(self.concepts[0], positions)
        for concept in self.concepts[1:]:
            batch = concatenate(batch, self._rows(concept, positions))
        return batch

    def _rows(self, concept: Concept, positions: Sequence[int]) -> Batch:
        rows = [self._row(concept, position) for position in positions]
        low = [row.low for row in rows if row.low is not None]
        weights = [row.weights for row in rows if row.weights is not None]
        return Batch(
            images=torch.stack([row.high for row in rows]),
            low_res=torch.stack(low) if low else None,
            prompts=tuple(row.prompt for row in rows),
            seeds=tuple(derive_seed(self.seed, concept.term, "noise", p) for p in positions),
            weights=torch.full((len(rows),), concept.weight),
            terms=(concept.term,) * len(rows),
            positions=len(rows),
            pixel_weights=torch.stack(weights) if weights else None,
        )

    def _row(self, concept: Concept, position: int) -> _Row:
        """Make one row; each of its random choices draws from a stream of its own.

        So a photo's row is the same whether others show the subject in scenes or not.
        """
        number = self._shuffled(concept, "epoch", len(concept.images), position)
        scenes = concept.in_scenes
        share = scenes.config.share if scenes is not None else 0.0
        if scenes is not None and self._rng(concept, "in scene", position).random() < share:
            return self._scene_row(concept, scenes, number, position)
        rng = self._rng(concept, "row", position)
        image = concept.images[number]
        box = centred_square(image) if concept.center_crop else _random_square(image, rng)
        mirrored = concept.flip and rng.random() < 0.5
        picture = resize(image.crop(box), self.stage.size, self.stage.resize)
        offset = draw_offset(self.stage, rng)
        weights: Tensor | None = None
        if concept.pixels is not None:
            mask = resize(concept.pixels.masks[number].crop(box), self.stage.size, "box")
            if self._rng(concept, "unmasked", position).random() < concept.pixels.unmasked:
                mask = Image.new("L", mask.size, 255)
            weights = self._weights(_mirrored(mask, mirrored), concept.pixels.least, offset)
        dropped = self._rng(concept, "caption", position).random() < concept.caption_dropout
        prompt = None if dropped else concept.prompts[number % len(concept.prompts)]
        return _Row(*make_pair(self.stage, _mirrored(picture, mirrored), offset), weights, prompt)

    def _scene_row(self, concept: Concept, scenes: InScenes, number: int, position: int) -> _Row:
        """Paste the subject of a photo into a scene; the caption names both."""
        rng = self._rng(concept, "scene", position)
        scene = self._shuffled(concept, "scenes", len(scenes.scenes), position)
        picture, mask = scenes.compose(number, scene, rng)
        mirrored = concept.flip and rng.random() < 0.5
        offset = draw_offset(self.stage, rng)
        weights: Tensor | None = None
        if concept.pixels is not None:
            weights = self._weights(_mirrored(mask, mirrored), scenes.config.scene_weight, offset)
        prompt = scenes.prompts[scene % len(scenes.prompts)]
        return _Row(*make_pair(self.stage, _mirrored(picture, mirrored), offset), weights, prompt)

    def _weights(self, mask: Image.Image, least: float, offset: Offset) -> Tensor:
        """Weights of the pixels that a row shows."""
        return crop_high(self.stage, pixel_weights(mask, least), offset)

    def _shuffled(self, concept: Concept, name: str, count: int, position: int) -> int:
        """Return which image stands at a position; each does once before any does again."""
        epoch, index = divmod(position, count)
        return int(permutation(count, derive_seed(self.seed, concept.term, name, epoch))[index])

    def _rng(self, concept: Concept, purpose: str, position: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, concept.term, purpose, position))


def pixel_weights(mask: Image.Image, least: float) -> Tensor:
    """Weights of a picture's pixels, 1 H W: max(mask, least), divided by their mean.

    The mean over the picture is 1: where the squared error does not depend on the mask, the loss of
    the row keeps its expected size, and with it the learning rate and lambda keep their meaning.
    A row's loss is sum(w e^2) / sum(w) of the whole picture; of a crop that shows little of the
    subject it is less, and of one that shows much of it more.
    """
    share = torch.from_numpy(np.array(mask, np.float32))[None] / 255
    weights = share.clamp(min=least)
    return weights / weights.mean()


def _mirrored(image: Image.Image, mirrored: bool) -> Image.Image:
    return ImageOps.mirror(image) if mirrored else image


def _random_square(image: Image.Image, rng: np.random.Generator) -> Box:
    side = min(image.size)
    left = int(rng.integers(0, image.width - side + 1))
    top = int(rng.integers(0, image.height - side + 1))
    return left, top, left + side, top + side
