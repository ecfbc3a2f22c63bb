"""A set of pictures as a stage is trained on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from cascade.data.dataset import Dataset
from cascade.data.packed import Packed
from cascade.data.texts import PictureTexts


@dataclass(frozen=True)
class Source:
    """One of the sets that rows come from.

    Attributes:
        data: its pictures.
        weight: its share of the rows, in any unit.
        size: width and height of a whole picture as it is trained on, pixels.
        prefix: put before each caption.
        texts: the captions' embeddings, where they lie beside the pictures of a pack.
    """

    data: Dataset
    weight: float
    size: tuple[int, int]
    prefix: str = ""
    texts: PictureTexts | None = None

    def captions(self, index: int) -> tuple[str, ...]:
        """Return a picture's captions as they are trained on."""
        return tuple(self.prefix + caption for caption in self.data.captions(index))

    def all_captions(self) -> Iterator[tuple[str, ...]]:
        """Yield every picture's captions as they are trained on."""
        for captions in self.data.all_captions():
            yield tuple(self.prefix + caption for caption in captions)

    def embedding(self, index: int, number: int | None, caption: str | None) -> Tensor | None:
        """Return the embedding of a picture's caption, L D; None is the null text's."""
        if number is None or caption is None:
            return None
        assert self.texts is not None, "they lie beside the pictures"
        assert isinstance(self.data, Packed), "which are a pack's"
        return self.texts.row(*self.data.at(index), number, caption)

    @cached_property
    def ends(self) -> np.ndarray:
        """Records up to the end of each shard."""
        return np.cumsum(self.data.counts)

    def shards(self, index: np.ndarray) -> np.ndarray:
        """Return the shards that records lie in."""
        return np.searchsorted(self.ends, index, side="right")

    def neighbour(self, index: int, word: int) -> int:
        """Return another record of the same shard, chosen by a random word; itself if alone."""
        shard = int(self.shards(np.array(index)))
        count = int(self.data.counts[shard])
        first = int(self.ends[shard]) - count
        return first + (index - first + 1 + word % max(1, count - 1)) % count
