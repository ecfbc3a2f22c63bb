"""Embeddings of captions that lie beside the pictures: read by place, with no table of them all.

A store (`cascade.text.store`) has, for each shard of a pack, one file in its folder `pictures`:
the layout of the store's own shards, `rows` (T D, bfloat16), `lengths` (int32, N) and `keys`
(uint8, N 16), in the order of the shard's records and of each record's captions; and `counts`
(int32), the captions of each record. A caption's place is its record's place and its own, and the
key beside it proves that it is the caption's.

A file is named after its shard and a hash of the shard's index and of the prefix that the
captions were given. So a shard that is the same in two packs, or in a pack that has grown, is
embedded once; and which shards have their embeddings is known from one list of names.

Shapes: `L` tokens, `D` the encoder's width; `N` captions and `T` tokens of a shard.
"""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from cascade.data.pack import ShardEntry
from cascade.data.place import Place
from cascade.errors import UserError
from cascade.tensors import opened
from cascade.text.store import NOTE, Conventions, read_note

PICTURES: Final = "pictures"
"""Folder of the store that has the files."""

_OPEN: Final = 64  # files held open; of each, 24 bytes a caption are in memory


def file_name(shard: ShardEntry, prefix: str) -> str:
    """Return the name of a shard's file of embeddings."""
    digest = hashlib.sha256(f"{shard.index_sha256} {prefix}".encode()).hexdigest()
    return f"{shard.name}-{digest[:16]}.safetensors"


def shard_name(file: str) -> str:
    """Return the name of the shard that a file belongs to."""
    return file.rpartition("-")[0]


def bring_store(store: Place) -> Path:
    """Return a store's folder on this machine, without what lies beside pictures."""
    note = store.fetch(NOTE, fresh=True)
    if store.is_far:
        for name in sorted(store.names()):
            store.fetch(name)
    return note.parent


class TextShard(NamedTuple):
    """An opened file.

    Attributes:
        rows: T D, a slice of the file.
        keys: N 16, uint8.
        starts: N + 1; where each caption's tokens begin in `rows`.
        firsts: where each record's captions begin in `keys`, and where the last one's end.
    """

    rows: Any
    keys: np.ndarray
    starts: np.ndarray
    firsts: np.ndarray

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file; reads all but its embeddings.

        Raises:
            UserError: it is damaged.
        """
        mend = "remove it and run 'cascade embed' again, which embeds it anew"
        file = opened(path, mend=mend)
        try:
            shard = cls(
                file.get_slice("rows"),
                file.get_tensor("keys").numpy(),
                _starts(file.get_tensor("lengths").numpy()),
                _starts(file.get_tensor("counts").numpy()),
            )
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); {mend}.") from None
        tokens, captions = shard.rows.get_shape()[0], len(shard.keys)
        if (shard.starts[-1], len(shard.starts) - 1, shard.firsts[-1]) != (
            tokens,
            captions,
            captions,
        ):
            raise UserError(f"{path} is damaged (its tensors do not fit each other); {mend}.")
        return shard

    def length(self, place: int) -> int:
        """Return the tokens of a caption."""
        return int(self.starts[place + 1] - self.starts[place])

    def row(self, place: int) -> Tensor:
        """Return the embedding of a caption, L D."""
        start, end = self.starts[place : place + 2].tolist()
        row: Tensor = self.rows[start:end]
        return row


@dataclass(frozen=True)
class PictureTexts:
    """The embeddings of a pack's captions; may be sent to other processes, which open it lazily.

    Attributes:
        files: the store's folder of them.
        data: the pack's place, for people.
        prefix: that every caption was given.
        conventions: the store's.
        encoder: the encoder's folder when they were made, for people.
    """

    files: Place
    data: str
    prefix: str
    conventions: Conventions
    encoder: str

    @classmethod
    def open(cls, store: Place, data: str, prefix: str = "") -> Self:
        """Open what a store, near or far, has of a pack."""
        note = read_note(store.fetch(NOTE, fresh=True).parent)
        return cls(store.inside(PICTURES), data, prefix, *note)

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        return self.conventions.width

    def require(self, shards: Sequence[ShardEntry]) -> None:
        """Check that every shard has its file, from one list of names; none is opened or fetched.

        A file's name says which index it was made from, and it is written whole or not at all, so
        its captions and their counts are those of the index.
        """
        there = self.files.names()
        missing = [shard for shard in shards if file_name(shard, self.prefix) not in there]
        if missing:
            raise UserError(
                f"Of {len(shards)} shards of {self.data} {len(missing)} have no embeddings in "
                f"{self.files.address}, {missing[0].name} among them; {self._mend()}"
            )

    def row(self, shard: ShardEntry, record: int, number: int, prompt: str) -> Tensor:
        """Return the embedding of one caption, L D in bfloat16.

        Args:
            record: place of the picture in its shard.
            number: place of the caption among the picture's.
            prompt: the caption as it is trained on, with the prefix.

        Raises:
            UserError: the shard has no file, or it has another caption's embedding there.
        """
        name = file_name(shard, self.prefix)
        try:
            texts = _opened(self.files, name)
        except FileNotFoundError:
            raise UserError(
                f"The shard {shard.name} of {self.data} has no embeddings in "
                f"{self.files.address}; {self._mend()}"
            ) from None
        if record < len(texts.firsts) - 1:
            first, end = texts.firsts[record : record + 2].tolist()
            key = self.conventions.key(prompt)
            if first + number < end and texts.keys[first + number].tobytes() == key:
                return texts.row(first + number)
        raise UserError(
            f"{self.files.address}/{name} has not the embedding of '{prompt}' for caption "
            f"{number} of record {record}: shard and index are not of one pack, or the file is "
            f"damaged; see 'cascade data check {shlex.quote(self.data)}', remove the file and "
            f"{self._mend()}"
        )

    def _mend(self) -> str:
        store = self.files.address.removesuffix(f"/{PICTURES}")
        command = self.conventions.command(self.encoder, "STORE" if self.files.is_far else store)
        command += ["--data", self.data, *(["--prefix", self.prefix] if self.prefix else [])]
        copied = f", and copy STORE to {store}" if self.files.is_far else ""
        return f"embed its captions with: {shlex.join(command)}{copied}"


@lru_cache(maxsize=_OPEN)
def _opened(files: Place, name: str) -> TextShard:
    """Open a file of a store's; by its content's name, so what is open stays right.

    Raises:
        FileNotFoundError: there is none.
    """
    if not files.has(name):
        raise FileNotFoundError(name)
    return TextShard.open(files.fetch(name))


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
