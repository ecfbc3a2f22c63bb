"""Captioned pictures in one memory-mapped array, the format of `cascade train`.

A dataset is a folder:

* `images.npy`: uint8, N C S S, read through a memory map;
* `captions.jsonl`: line i holds the equally good captions of picture i, a JSON list or one string;
* `dataset.json`: size, count, resize kernel, sources and licence, for people.

Shapes: `B` rows, `N` pictures of the dataset, `C S S` pixels of one; `h w` low-resolution pixels.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.data.batch import Batch, crop_offsets, crop_pair, permutation, whole_pair
from cascade.diffusion.noise import derive_seed
from cascade.diffusion.philox import philox4x32, round_keys
from cascade.errors import UserError
from cascade.files import read_text
from cascade.text.captions import parse_captions
from cascade.text.cleaning import names_side

_DIGESTED: Final = 256  # pictures of a dataset that its digest reads


@dataclass(frozen=True)
class CaptionedArray:
    """An opened dataset: pictures N C S S (uint8) and the captions of each."""

    images: np.ndarray
    captions: tuple[tuple[str, ...], ...]

    @classmethod
    def open(cls, folder: Path) -> "CaptionedArray":
        """Open a dataset folder without reading the pictures into memory."""
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

    def digest(self) -> str:
        """Return a SHA-256 of all captions and of some hundred pictures."""
        digest = hashlib.sha256(f"{self.images.shape}".encode())
        for captions in self.captions:
            digest.update(json.dumps(captions).encode())
        for index in range(0, len(self.images), -(-len(self.images) // _DIGESTED)):
            digest.update(self.images[index].tobytes())
        return digest.hexdigest()

    def picture(self, index: int) -> Image.Image:
        """Return one picture."""
        return Image.fromarray(np.ascontiguousarray(self.images[index].transpose(1, 2, 0)))


@dataclass(frozen=True)
class Decisions:
    """The random choices of rows, and nothing of their pixels.

    Attributes:
        index: B int64, which pictures.
        mirrored: B bool.
        top: B int64, where the crop begins, in low-resolution pixels of the mirrored picture.
        left: B int64.
        prompts: B captions; None is the unconditional text.
        seeds: B seeds of each row's timestep and noise.
    """

    index: np.ndarray
    mirrored: np.ndarray
    top: np.ndarray
    left: np.ndarray
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class CaptionedSamples:
    """Training rows of one stage from a dataset: shuffled, mirrored, captions dropped.

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
        """Return the rows at these positions; see `cascade.data.batch`."""
        chosen = self.decide(positions)
        pairs = [
            self._pair(*row)
            for row in zip(chosen.index, chosen.mirrored, chosen.top, chosen.left, strict=True)
        ]
        low = [low for _, low in pairs if low is not None]
        return Batch(
            images=torch.stack([high for high, _ in pairs]),
            low_res=torch.stack(low) if low else None,
            prompts=chosen.prompts,
            seeds=chosen.seeds,
            weights=torch.ones(len(pairs)),
            terms=("mse",) * len(pairs),
            positions=len(pairs),
        )

    def decide(self, positions: Sequence[int]) -> Decisions:
        """Make the random choices of the rows at these positions, all at once."""
        at = np.asarray(positions, dtype=np.int64)
        index = self._pictures(at)
        mirror, caption, drop, top, left, low, high, _ = _words(self.seed, at)
        choices = _below(caption, self._caption_counts[index])
        dropped = drop < self.caption_dropout * 2**32
        offsets = crop_offsets(self.stage)
        prompts = tuple(
            None if nothing else self.data.captions[picture][choice]
            for picture, choice, nothing in zip(index, choices, dropped, strict=True)
        )
        # A mirrored picture would belie a caption that says "on the left".
        turns = np.array([not names_side(prompt) for prompt in prompts]) & self.flip
        return Decisions(
            index=index,
            mirrored=(mirror < 2**31) & turns,
            top=_below(top, offsets),
            left=_below(left, offsets),
            prompts=prompts,
            seeds=tuple(((high >> 1 << 32) | low).tolist()),
        )

    @cached_property
    def _caption_counts(self) -> np.ndarray:
        return np.array([len(captions) for captions in self.data.captions])

    def _pictures(self, positions: np.ndarray) -> np.ndarray:
        count = len(self.data.images)
        epochs = positions // count
        index = np.empty_like(positions)
        for epoch in np.unique(epochs):
            order = permutation(count, derive_seed(self.seed, "epoch", int(epoch)))
            of_epoch = epochs == epoch
            index[of_epoch] = order[positions[of_epoch] % count]
        return index

    def _pair(
        self, index: int, mirrored: bool, top: int, left: int
    ) -> tuple[Tensor, Tensor | None]:
        high, low = whole_pair(self.stage, self.data.picture(index))
        if mirrored:  # the small one after it was made: a twin made beforehand has the same bits
            high, low = high.flip(-1), None if low is None else low.flip(-1)
        return crop_pair(self.stage, high, low, (top, left))


def _open_images(path: Path) -> np.ndarray:
    try:
        images: np.ndarray = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the dataset again.") from None
    if not isinstance(images, np.ndarray):
        raise UserError(f"{path} is an archive of arrays; save one array, with numpy.save.")
    right = images.ndim == 4 and images.shape[1] == 3 and images.shape[2] == images.shape[3]
    if not right or images.dtype != np.uint8 or not len(images):
        raise UserError(
            f"{path} holds {images.dtype} of shape {images.shape}; "
            "it must be uint8 of shape N 3 S S, with at least one picture."
        )
    return images


def _read_captions(path: Path) -> tuple[tuple[str, ...], ...]:
    # Not `splitlines`, which also breaks at separators that may stand inside a JSON string.
    lines = read_text(path).removesuffix("\n").split("\n")
    return tuple(parse_captions(path, number, line) for number, line in enumerate(lines, start=1))


def _words(seed: int, positions: np.ndarray) -> np.ndarray:
    """Return eight random 32-bit words of every position, 8 x B int64.

    Philox and not a generator of NumPy's per row, of which a thousand take tens of milliseconds.
    """
    position, zero = torch.from_numpy(positions), torch.zeros((), dtype=torch.int64)
    keys = round_keys(torch.tensor(derive_seed(seed, "row")))
    words = [
        word
        for block in range(2)
        for word in philox4x32((position & 0xFFFFFFFF, position >> 32, zero + block, zero), keys)
    ]
    return torch.stack(words).numpy()


def _below(words: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Turn 32-bit words into integers in [0, count)."""
    return words * count >> 32
