"""Captioned pictures in one memory-mapped array, the format of `cascade train`.

A dataset is a folder:

* `images.npy`: uint8, N C S S, read through a memory map;
* `captions.jsonl`: line i holds a JSON list of equally good captions of picture i;
* `dataset.json`: size, count, resize kernel, sources and licence, for people.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.data.batch import Batch
from cascade.data.images import resize, to_tensor
from cascade.diffusion.noise import derive_seed
from cascade.errors import UserError


@dataclass(frozen=True)
class CaptionedArray:
    """An opened dataset: pictures N C S S (uint8) and the captions of each."""

    images: np.ndarray
    captions: tuple[tuple[str, ...], ...]

    @classmethod
    def open(cls, folder: Path) -> "CaptionedArray":
        """Open a dataset folder without reading the pictures into memory.

        Raises:
            UserError: a file is missing or damaged, or pictures and captions differ in number.
        """
        for name in ("images.npy", "captions.jsonl"):
            if not (folder / name).is_file():
                raise UserError(
                    f"The data folder {folder} has no {name}; a dataset is a folder with "
                    "images.npy (uint8, N 3 S S) and captions.jsonl (a JSON list per line)."
                )
        images = _open_images(folder / "images.npy")
        captions = _read_captions(folder / "captions.jsonl")
        if len(captions) != len(images):
            raise UserError(
                f"{folder} has {len(images)} pictures but {len(captions)} lines of captions; "
                "write one line of captions per picture."
            )
        return cls(images, captions)

    def picture(self, index: int) -> Image.Image:
        """One picture."""
        return Image.fromarray(np.ascontiguousarray(self.images[index].transpose(1, 2, 0)))


@dataclass(frozen=True)
class CaptionedSamples:
    """Training rows of one stage drawn from a dataset: shuffled, mirrored, captions dropped.

    Every epoch is a new permutation keyed by (seed, epoch).
    """

    data: CaptionedArray
    stage: StageConfig
    seed: int
    caption_dropout: float
    flip: bool

    def __post_init__(self) -> None:
        """Refuse pictures that are not of the stage's size."""
        side = self.data.images.shape[-1]
        if side != self.stage.size:
            raise UserError(
                f"The pictures are {side} pixels wide but stage '{self.stage.name}' makes "
                f"{self.stage.size}; prepare the data at the stage's size."
            )

    def rows(self, positions: Sequence[int]) -> Batch:
        """The rows at these positions; see `cascade.data.batch`."""
        rows = [self._row(position) for position in positions]
        pairs = [make_pair(self.stage, picture, rng) for picture, _, rng in rows]
        low = [low for _, low in pairs if low is not None]
        return Batch(
            images=torch.stack([high for high, _ in pairs]),
            low_res=torch.stack(low) if low else None,
            prompts=tuple(caption for _, caption, _ in rows),
            seeds=tuple(derive_seed(self.seed, "noise", p) for p in positions),
            weights=torch.ones(len(rows)),
            terms=("mse",) * len(rows),
            positions=len(rows),
        )

    def _row(self, position: int) -> tuple[Image.Image, str | None, np.random.Generator]:
        count = len(self.data.images)
        epoch, place = divmod(position, count)
        index = int(self._order(epoch)[place])
        rng = np.random.default_rng(derive_seed(self.seed, "row", position))
        picture = self.data.picture(index)
        if self.flip and rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        captions = self.data.captions[index]
        caption: str | None = captions[int(rng.integers(len(captions)))]
        if rng.random() < self.caption_dropout:
            caption = None
        return picture, caption, rng

    def _order(self, epoch: int) -> np.ndarray:
        return permutation(len(self.data.images), derive_seed(self.seed, "epoch", epoch))


def _open_images(path: Path) -> np.ndarray:
    try:
        images: np.ndarray = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the dataset again.") from None
    right = images.ndim == 4 and images.shape[1] == 3 and images.shape[2] == images.shape[3]
    if not right or images.dtype != np.uint8 or not len(images):
        raise UserError(
            f"{path} holds {images.dtype} of shape {images.shape}; "
            "it must be uint8 of shape N 3 S S, with at least one picture."
        )
    return images


def _read_captions(path: Path) -> tuple[tuple[str, ...], ...]:
    # Not `splitlines`, which also breaks at separators that may stand inside a JSON string.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return tuple(_parse_captions(path, number, line) for number, line in enumerate(lines, start=1))


def _parse_captions(path: Path, number: int, line: str) -> tuple[str, ...]:
    try:
        captions = json.loads(line)
    except json.JSONDecodeError:
        captions = None
    if (
        not isinstance(captions, list)
        or not captions
        or not all(isinstance(caption, str) for caption in captions)
    ):
        raise UserError(
            f"Line {number} of {path} is no JSON list of captions; write at least one, "
            'for instance ["a photo of a dog"].'
        )
    return tuple(captions)


def make_pair(
    stage: StageConfig, picture: Image.Image, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """The high-resolution picture and its low-resolution twin, cropped as the stage trains.

    The twin is made from the whole picture with the checkpoint's own resize kernel and cropped at
    the same place (Imagen section 2.5), so that a crop has the low-resolution pixels that the
    whole picture has there.

    Returns:
        C H W in [-1, 1], and C h w or None for a base stage.
    """
    high = to_tensor(picture)
    if stage.low_res is None:
        return high, None
    low = to_tensor(resize(picture, stage.low_res.size, stage.resize))
    crop = stage.low_res.crop
    if crop is None or crop == stage.size:
        return high, low
    factor = stage.size // stage.low_res.size
    side = crop // factor
    top, left = (int(v) for v in rng.integers(0, stage.low_res.size - side + 1, size=2))
    return (
        high[:, top * factor : top * factor + crop, left * factor : left * factor + crop],
        low[:, top : top + side, left : left + side],
    )


@lru_cache(maxsize=4)
def permutation(count: int, seed: int) -> np.ndarray:
    """A permutation of 0..count-1 that depends on nothing but the seed."""
    return np.random.default_rng(seed).permutation(count)
