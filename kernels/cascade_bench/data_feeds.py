"""What is asked of whoever feeds a training, and what is had of them.

Shapes: `B` pictures of `S S` pixels, uint8, B 3 S S.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cascade.config.stage import ResizeKernel
from cascade.data.images import resize, square
from cascade.data.pack import MANIFEST, PackManifest, ShardEntry

SEED: Final = 3

AHEAD: Final = 2
"""Batches that each worker prepares: `DataLoader`'s own number, and ours."""


class Named(NamedTuple):
    """A batch, with the shard and the key of every picture."""

    images: Tensor
    names: list[tuple[str, str]]


@dataclass(frozen=True)
class Feed:
    """An endless stream of batches, its pictures shuffled.

    Attributes:
        batches: B 3 S S; the workers start with the first.
        named: makes a batch as those are made, by this process.
        decide: chooses the record at a position, and reads nothing of it; None where there is no
            such thing.
    """

    batches: Iterator[Tensor]
    named: Callable[[], Named]
    decide: Callable[[int], object] | None = None


@dataclass(frozen=True)
class Asked:
    """What every provider is asked for.

    Attributes:
        folder: of the pack.
        scratch: a folder for what a library keeps of it.
        size: of the pictures: the largest centred square, resized.
        batch: pictures of one.
        workers: processes that decode.
        kernel: Pillow's, antialiased.
        start: position of the first picture, where the stream has positions.
    """

    folder: Path
    scratch: Path
    size: int
    batch: int
    workers: int
    kernel: ResizeKernel = "bicubic"
    start: int = 0

    @property
    def ahead(self) -> int:
        """Batches that workers have prepared when nobody asks for one."""
        return AHEAD * self.workers

    @cached_property
    def shards(self) -> tuple[ShardEntry, ...]:
        """Those that are trained on."""
        return PackManifest.load(self.folder / MANIFEST).of_split("train")

    @property
    def tars(self) -> list[str]:
        """Their files."""
        return [str(self.folder / shard.tar) for shard in self.shards]


Provider: TypeAlias = Callable[[Asked], Feed]


@dataclass(frozen=True)
class Squared:
    """Cuts and resizes a decoded picture; small enough to be sent to a worker."""

    size: int
    kernel: ResizeKernel

    def __call__(self, image: Image.Image) -> Tensor:
        """Return it, 3 S S."""
        made = resize(square(image.convert("RGB")), self.size, self.kernel)
        return torch.from_numpy(np.array(made)).permute(2, 0, 1)
