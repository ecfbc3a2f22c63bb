"""The seam of every data set: captioned pictures in shards, found by their numbers.

An *index* counts the records of all shards, one shard after another.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from PIL import Image


class UnusableRecord(Exception):
    """A record gives no row: it is damaged, or too small; another takes its place."""


class Dataset(Protocol):
    """Captioned pictures with random access; small enough to be sent to another process."""

    @property
    def counts(self) -> np.ndarray:
        """Records of each shard, int64."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Return a picture's equally good captions, at least one."""
        ...

    def picture(self, index: int, least_side: int | None = None) -> Image.Image:
        """Decode a picture, upright and in RGB.

        Args:
            index: of all shards' records.
            least_side: a shorter side that is enough, pixels; see `read_upright`.

        Raises:
            UnusableRecord: it is damaged.
        """
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Return a picture's width and height, pixels, from what is known without decoding it."""
        ...

    def name(self, index: int) -> str:
        """Return what people find a record by."""
        ...

    def all_captions(self) -> Iterator[tuple[str, ...]]:
        """Yield every picture's captions, in order."""
        ...

    def some_captions(self, count: int) -> Iterator[tuple[str, ...]]:
        """Yield captions of about so many pictures, of all parts; no picture is fetched."""
        ...

    def digest(self) -> str:
        """Return a digest of everything that a run's weights depend on."""
        ...

    def bring(self, shard: int) -> None:
        """Make sure that a shard lies on this machine, so that reading it does not wait."""
        ...
