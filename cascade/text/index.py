"""The shards of a store, and where every caption lies in them.

Shapes: `N` captions and `T` tokens of a shard, `D` the encoder's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from safetensors import SafetensorError, safe_open

from cascade.errors import UserError

KEY_BYTES: Final = 16
_OPEN: Final = 256  # below the number of files that systems let a process open


@dataclass(frozen=True)
class Index:
    """Where every stored caption lies, ordered by key.

    A key is two 64-bit numbers, since NumPy has none of 128 bits.

    Attributes:
        high: first halves of the keys, ascending.
        low: their second halves.
        shards: number of the shard.
        starts: first row in the shard.
        lengths: number of rows.
    """

    high: np.ndarray
    low: np.ndarray
    shards: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def read(cls, shards: Sequence[Path]) -> Self:
        """Read the keys of all shards, none of their embeddings.

        Raises:
            UserError: a shard is damaged.
        """
        halves = [np.zeros((0, 2), np.uint64)]
        places = [np.zeros((0, 3), np.int64)]
        for number, path in enumerate(shards):
            file = opened(path)
            keys = np.ascontiguousarray(file.get_tensor("keys").numpy())
            halves.append(keys.view(">u8").astype(np.uint64))
            lengths = file.get_tensor("lengths").numpy().astype(np.int64)
            starts = np.cumsum(lengths) - lengths
            places.append(np.stack([np.full_like(lengths, number), starts, lengths], axis=1))
        key, place = np.concatenate(halves), np.concatenate(places)
        order = np.argsort(key[:, 0], kind="stable")
        columns = (*key[order].T, *place[order].T)
        return cls(*(np.ascontiguousarray(column) for column in columns))

    def __len__(self) -> int:
        """How many captions are stored."""
        return len(self.high)

    def find(self, key: bytes) -> tuple[int, int, int] | None:
        """Return the shard, the first row and the number of rows of a key, or None."""
        high, low = np.frombuffer(key, ">u8").astype(np.uint64)
        place = int(np.searchsorted(self.high, high))
        while place < len(self) and self.high[place] == high:
            if self.low[place] == low:
                return int(self.shards[place]), int(self.starts[place]), int(self.lengths[place])
            place += 1
        return None


@lru_cache(maxsize=_OPEN)
def opened(shard: Path) -> Any:
    """Open a shard through a memory map; the handle has no usable type.

    Raises:
        UserError: it is damaged.
    """
    try:
        return safe_open(shard, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{shard} is damaged ({error}); remove it and run 'cascade embed' again, which embeds "
            "its captions anew."
        ) from None
