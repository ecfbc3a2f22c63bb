"""Captioned pictures of one size in one memory-mapped array.

A folder with

* `images.npy`: uint8, N C S S, read through a memory map;
* `captions.jsonl`: line i holds the equally good captions of picture i, a JSON list or one string;
* `dataset.json`: size, count, resize kernel, sources and licence, for people.

Shapes: `N` pictures of the data set, `C S S` pixels of one.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cascade.errors import UserError
from cascade.files import read_text
from cascade.text.captions import parse_captions

IMAGES: Final = "images.npy"
CAPTIONS: Final = "captions.jsonl"
_DIGESTED: Final = 256  # pictures of a dataset that its digest reads


@dataclass(frozen=True)
class CaptionedArray:
    """An opened array: a `Dataset` of one shard.

    Attributes:
        images: N C S S, uint8.
        texts: the captions of each.
    """

    images: np.ndarray
    texts: tuple[tuple[str, ...], ...]

    @classmethod
    def open(cls, folder: Path) -> "CaptionedArray":
        """Open a folder without reading the pictures into memory."""
        for name in (IMAGES, CAPTIONS):
            if not (folder / name).is_file():
                raise UserError(
                    f"The data folder {folder} has no {name}; a dataset is a folder with "
                    "images.npy (uint8, N 3 S S) and captions.jsonl (a JSON list per line), or a "
                    "pack, which 'cascade data pack' makes of pictures."
                )
        images = _open_images(folder / IMAGES)
        texts = _read_captions(folder / CAPTIONS)
        if len(texts) != len(images):
            raise UserError(
                f"{folder} has {len(images)} pictures but {len(texts)} lines of captions; "
                "write one line of captions per picture."
            )
        return cls(images, texts)

    @property
    def counts(self) -> np.ndarray:
        """One shard."""
        return np.array([len(self.images)])

    def captions(self, index: int) -> tuple[str, ...]:
        """Return a picture's captions."""
        return self.texts[index]

    def all_captions(self) -> Iterator[tuple[str, ...]]:
        """Yield every picture's captions, in order."""
        yield from self.texts

    def some_captions(self, count: int) -> Iterator[tuple[str, ...]]:
        """Yield captions of every so many-th picture."""
        yield from self.texts[:: max(1, len(self.texts) // count)]

    def picture(self, index: int, least_side: int | None = None) -> Image.Image:
        """Return one picture, as it is."""
        return Image.fromarray(np.ascontiguousarray(self.images[index].transpose(1, 2, 0)))

    def size(self, index: int) -> tuple[int, int]:
        """Return the size that all have."""
        return self.images.shape[-1], self.images.shape[-2]

    def name(self, index: int) -> str:
        """Return a picture's number."""
        return f"picture {index}"

    def bring(self, shard: int) -> None:
        """Do nothing: it is here."""

    def digest(self) -> str:
        """Return a SHA-256 of all captions and of some hundred pictures."""
        digest = hashlib.sha256(f"{self.images.shape}".encode())
        for captions in self.texts:
            digest.update(json.dumps(captions).encode())
        for index in range(0, len(self.images), -(-len(self.images) // _DIGESTED)):
            digest.update(self.images[index].tobytes())
        return digest.hexdigest()


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
