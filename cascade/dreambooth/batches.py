"""The rows DreamBooth trains on: per position one photo and, beside it, one class image.

Shapes: `B` rows, `C H W` pixels; pictures in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageOps

from cascade.config.stage import StageConfig
from cascade.data.batch import Batch, concatenate
from cascade.data.captioned import make_pair, permutation
from cascade.data.images import resize, square
from cascade.diffusion.noise import derive_seed


@dataclass(frozen=True)
class Kind:
    """One kind of rows: the subject's photos, or the class images.

    Attributes:
        term: the loss term's name in the report, "instance" or "prior".
        images: the pictures, of any size.
        prompts: what they show, by turns: picture i shows number i modulo their count.
        weight: 1 for the subject, lambda for the prior (DreamBooth eq. 2).
        flip: mirror half of the rows.
        center_crop: take the centred square, else a random one.
        caption_dropout: share of rows that are given the unconditional text instead.
    """

    term: str
    images: tuple[Image.Image, ...]
    prompts: tuple[str, ...]
    weight: float = 1.0
    flip: bool = False
    center_crop: bool = True
    caption_dropout: float = 0.0


def made_small(kind: Kind, stage: StageConfig) -> Kind:
    """The kind with its pictures as small as the stage's, where every row takes the same square.

    Rows made of it are the same; a photo has some hundred times the pixels, and each row would
    read them all again.
    """
    if not kind.center_crop:
        return kind
    small = (resize(square(image), stage.size, stage.resize) for image in kind.images)
    return replace(kind, images=tuple(small))


@dataclass(frozen=True)
class DreamBoothSamples:
    """Rows of one stage: at each position one row of every kind, each with its own noise.

    Every picture of a kind is seen once before one is seen again.
    """

    stage: StageConfig
    kinds: tuple[Kind, ...]
    seed: int

    def rows(self, positions: Sequence[int]) -> Batch:
        """The rows at these positions; see `cascade.data.batch`."""
        batch = self._rows(self.kinds[0], positions)
        for kind in self.kinds[1:]:
            batch = concatenate(batch, self._rows(kind, positions))
        return batch

    def _rows(self, kind: Kind, positions: Sequence[int]) -> Batch:
        numbers = [self._number(kind, position) for position in positions]
        pairs = []
        for position, number in zip(positions, numbers, strict=True):
            rng = np.random.default_rng(derive_seed(self.seed, kind.term, "row", position))
            pairs.append(make_pair(self.stage, self._picture(kind, number, rng), rng))
        low = [low for _, low in pairs if low is not None]
        return Batch(
            images=torch.stack([high for high, _ in pairs]),
            low_res=torch.stack(low) if low else None,
            prompts=tuple(
                self._prompt(kind, position, number)
                for position, number in zip(positions, numbers, strict=True)
            ),
            seeds=tuple(derive_seed(self.seed, kind.term, "noise", p) for p in positions),
            weights=torch.full((len(pairs),), kind.weight),
            terms=(kind.term,) * len(pairs),
            positions=len(pairs),
        )

    def _number(self, kind: Kind, position: int) -> int:
        """Which picture of its kind stands at a position."""
        epoch, place = divmod(position, len(kind.images))
        order = permutation(len(kind.images), derive_seed(self.seed, kind.term, "epoch", epoch))
        return int(order[place])

    def _prompt(self, kind: Kind, position: int, number: int) -> str | None:
        rng = np.random.default_rng(derive_seed(self.seed, kind.term, "caption", position))
        dropped = rng.random() < kind.caption_dropout
        return None if dropped else kind.prompts[number % len(kind.prompts)]

    def _picture(self, kind: Kind, number: int, rng: np.random.Generator) -> Image.Image:
        image = kind.images[number]
        image = square(image) if kind.center_crop else _random_square(image, rng)
        image = resize(image, self.stage.size, self.stage.resize)
        return ImageOps.mirror(image) if kind.flip and rng.random() < 0.5 else image


def _random_square(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = min(image.size)
    left = int(rng.integers(0, image.width - side + 1))
    top = int(rng.integers(0, image.height - side + 1))
    return image.crop((left, top, left + side, top + side))
