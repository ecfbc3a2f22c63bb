"""Composed pictures on a device, and what a judge must not mind in them.

Shapes: `N` pictures of a dataset, `B` of a batch, `A` attributes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captions import ACCESSORIES, STYLES, places
from cascade.data.array import CaptionedArray
from cascade.errors import UserError
from cascade.evaluate.judge_config import Attribute, AttributeName, Stated
from cascade.files import read_json

OTHERWISE: Final[Mapping[AttributeName, str]] = {"colour": "its own", "accessory": "none"}

SHIFT: Final = 0.1  # of half a picture's side, at most
ZOOM: Final = 0.06
TONE: Final = 0.12  # contrast, brightness and saturation
TINT: Final = 0.04  # brightness of one colour channel: more would turn hues
NOISE: Final = 0.06  # standard deviation at most, of [-1, 1]


@dataclass(frozen=True)
class Labelled:
    """Pictures with what they show.

    Attributes:
        images: uint8, N 3 S S.
        labels: int64, N A, places in the vocabulary; -1 is nothing.
        vocabulary: the values of every attribute, in the order of the labels' columns.
    """

    images: Tensor
    labels: Tensor
    vocabulary: Mapping[AttributeName, Sequence[str]]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a dataset of `prepare.py`, its pictures mapped from the file."""
        data = CaptionedArray.open(folder)
        vocabulary: Any = read_json(folder / "dataset.json").get("vocabulary")
        path = folder / "labels.npy"
        if not isinstance(vocabulary, dict) or not path.is_file():
            raise UserError(
                f"{folder} does not tell what its pictures show; make it with "
                "tools/mini/prepare.py."
            )
        labels = np.load(path).astype(np.int64)
        names = get_args(AttributeName)
        if set(vocabulary) != set(names) or labels.shape != (len(data.images), len(names)):
            raise UserError(
                f"{path} of shape {labels.shape} does not belong to {len(data.images)} pictures "
                f"and the attributes {', '.join(names)}; make the dataset again."
            )
        # Copy on write, and nothing is written: PyTorch wants memory that it may write.
        images = np.load(folder / "images.npy", mmap_mode="c")
        # As the labels' columns: a JSON object promises no order.
        return cls(
            torch.from_numpy(images),
            torch.from_numpy(labels),
            {name: tuple(vocabulary[name]) for name in names},
        )

    def part(self, rows: slice) -> Self:
        """Return some of them."""
        return type(self)(self.images[rows], self.labels[rows], self.vocabulary)

    def to(self, device: str) -> Self:
        """Return them in a device's memory."""
        return type(self)(self.images.to(device), self.labels.to(device), self.vocabulary)

    def attributes(self) -> dict[AttributeName, Attribute]:
        """Return a judge's attributes and the world's words for them."""
        return {
            name: Attribute(
                words={value: _words(name, value) for value in values},
                otherwise=OTHERWISE.get(name),
            )
            for name, values in self.vocabulary.items()
        }

    def targets(self) -> Tensor:
        """Return the right answers, N A; -1 where no answer is right or wrong."""
        targets = self.labels.clone()
        for column, (name, values) in enumerate(self.vocabulary.items()):
            if name in OTHERWISE:
                targets[targets[:, column] < 0, column] = len(values)
        return targets

    def stated(self) -> list[Stated]:
        """Return what is true of every picture, as a prompt would state it."""
        return [
            {
                name: values[label]
                for label, (name, values) in zip(row, self.vocabulary.items(), strict=True)
                if label >= 0
            }
            for row in self.labels.tolist()
        ]


def _words(name: AttributeName, value: str) -> tuple[str, ...]:
    if name == "style":  # without its article: "black and white photo of" is a photo
        return tuple(said.removeprefix("a ") for key, said in STYLES.items() if key == value)
    if name == "scene":
        return places(value)
    return (ACCESSORIES[value],) if name == "accessory" else (value,)


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield rows of batches without end, in a new order every time round."""
    while True:
        order = torch.randperm(count, generator=generator, device=generator.device)
        yield from order.split(size)[: max(1, count // size)]


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change pictures as a diffusion network might draw them, never what they show.

    Args:
        images: uint8, B 3 S S.
        generator: of their device.

    Returns:
        B 3 S S in [-1, 1].
    """

    def between(low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(len(images), *shape, generator=generator, device=images.device)
        return low + (high - low) * unit

    pictures = images.float() / 127.5 - 1
    pictures = _moved(pictures, between)
    one = (1, 1, 1)
    soft, coarse = _softened(pictures), _coarsened(pictures)
    # Half of the pictures stay sharp: a share below 0 is none.
    pictures = pictures.lerp(soft, between(-1, 1, *one).clamp(min=0))
    pictures = pictures.lerp(coarse, between(-1, 1, *one).clamp(min=0))
    grey = pictures.mean(1, keepdim=True)
    pictures = grey.lerp(pictures, 1 + between(-TONE, TONE, *one))
    pictures = pictures * (1 + between(-TONE, TONE, *one)) + between(-TONE, TONE, *one)
    pictures = pictures + between(-TINT, TINT, 3, 1, 1)
    noise = torch.randn(pictures.shape, generator=generator, device=images.device)
    return (pictures + between(0, NOISE, *one) * noise).clamp(-1, 1)


def _moved(pictures: Tensor, between: Callable[..., Tensor]) -> Tensor:
    """Mirror, shift and zoom; what comes in at the rim is mirrored."""
    zoom = 1 + between(-ZOOM, ZOOM)
    mirrored = between(0, 1) < 0.5
    zero = torch.zeros_like(zoom)
    across = torch.stack([torch.where(mirrored, -zoom, zoom), zero, between(-SHIFT, SHIFT)], 1)
    down = torch.stack([zero, zoom, between(-SHIFT, SHIFT)], 1)
    places = F.affine_grid(
        torch.stack([across, down], 1), list(pictures.shape), align_corners=False
    )
    return F.grid_sample(pictures, places, padding_mode="reflection", align_corners=False)


def _softened(pictures: Tensor) -> Tensor:
    for _ in range(2):
        pictures = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    return pictures


def _coarsened(pictures: Tensor) -> Tensor:
    half = F.avg_pool2d(pictures, 2)
    return F.interpolate(half, pictures.shape[-2:], mode="bilinear", align_corners=False)
