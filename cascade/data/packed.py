"""Reading of a pack (`cascade.data.pack`): any record by its number, one range of one file.

Of the indexes only the numbers are held, and of the shards read last; notes are read with the
pictures. A pack can be sent to another process, which opens what it reads for itself.
"""

import os
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final, Self

import numpy as np
from PIL import Image
from pydantic import ValidationError

from cascade.config.aspect import Aspect
from cascade.data.dataset import UnusableRecord
from cascade.data.decoding import Encoded
from cascade.data.images import read_image
from cascade.data.pack import (
    MANIFEST,
    Note,
    PackManifest,
    ShardEntry,
    Split,
    import_parquet,
    read_index,
)
from cascade.data.place import Place
from cascade.errors import UserError

_HELD: Final = 1_000_000  # records whose numbers are held at once: some 40 MB
_OPEN: Final = 128  # files, below the number that systems let a process open
_LOOKED_AT: Final = 8  # shards whose captions stand for those of all
_NUMBERS: Final = ("offset", "size", "note_offset", "note_size", "crc32", "width", "height")


class _Shard:
    """An opened shard, closed when nobody reads it any more.

    Attributes:
        numbers: of its index, a row per record.
    """

    def __init__(self, tar: Path, numbers: dict[str, np.ndarray]) -> None:
        self.numbers = numbers
        self._file = os.open(tar, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of the tar, whoever else reads it."""
        return os.pread(self._file, size, offset)


class _Opened:
    """The shards opened last, by their numbers; another process opens its own."""

    def __init__(self) -> None:
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._records = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def get(self, number: int, open_shard: Callable[[int], _Shard]) -> _Shard:
        """Return a shard, opened if it is not yet."""
        with self._lock:
            if number not in self._shards:
                self._shards[number] = shard = open_shard(number)
                self._records += len(shard.numbers["size"])
            while len(self._shards) > 1 and (self._records > _HELD or len(self._shards) > _OPEN):
                _, oldest = self._shards.popitem(last=False)
                self._records -= len(oldest.numbers["size"])
            self._shards.move_to_end(number)
            return self._shards[number]


@dataclass(frozen=True, eq=False)
class Packed:
    """Some shards of a pack: a `Dataset`.

    Attributes:
        place: of the pack.
        manifest: of all of it.
        split: what the shards are for.
        aspect: that they were sorted by; None is all there are.
    """

    place: Place
    manifest: PackManifest
    split: Split = "train"
    aspect: Aspect | None = None
    _opened: _Opened = field(default_factory=_Opened, repr=False)

    @classmethod
    def open(cls, place: Place, split: Split = "train") -> Self:
        """Open a pack.

        Raises:
            UserError: it has no pictures of the split, or pyarrow is missing.
        """
        found = cls(place, PackManifest.load(place.fetch(MANIFEST, fresh=True)), split)
        if not found.shards:
            raise UserError(
                f"The pack {place.address} has no pictures for {split}; pack it again, with "
                "--held-out for those of validation."
            )
        import_parquet()
        return found

    @cached_property
    def shards(self) -> tuple[ShardEntry, ...]:
        """Its shards, in order."""
        return tuple(
            shard
            for shard in self.manifest.of_split(self.split)
            if self.aspect is None or shard.aspect == self.aspect
        )

    def aspects(self) -> tuple[Aspect, ...]:
        """Return the aspect ratios that the pictures are sorted by."""
        found = dict.fromkeys(shard.aspect for shard in self.shards)
        if None in found:
            raise UserError(
                f"The pack {self.place.address} is not sorted by aspect ratio; pack it again with "
                '--by-aspect, or set data.shapes = "square".'
            )
        return tuple(aspect for aspect in found if aspect is not None)

    def of_aspect(self, aspect: Aspect) -> Self:
        """Return the shards of one aspect ratio."""
        return type(self)(self.place, self.manifest, self.split, aspect)

    def of_split(self, split: Split) -> Self | None:
        """Return those of another split, of the same aspect ratio; None if there are none."""
        part = type(self)(self.place, self.manifest, split, self.aspect)
        return part if part.shards else None

    @cached_property
    def counts(self) -> np.ndarray:
        """Records of each shard."""
        return np.array([shard.records for shard in self.shards])

    def captions(self, index: int) -> tuple[str, ...]:
        """Return a picture's captions.

        Raises:
            UnusableRecord: it is damaged.
        """
        shard, number = self._find(index)
        numbers = shard.numbers
        data = shard.read(int(numbers["note_offset"][number]), int(numbers["note_size"][number]))
        try:
            return Note.model_validate_json(data).captions
        except ValidationError as error:
            raise UnusableRecord(f"the note is damaged ({error.errors()[0]['msg']})") from None

    def picture(self, index: int, least_side: int | None = None) -> Image.Image:
        """Decode a picture; see `Dataset.picture`."""
        shard, number = self._find(index)
        of = {name: int(column[number]) for name, column in shard.numbers.items()}
        data = shard.read(of["note_offset"], of["offset"] + of["size"] - of["note_offset"])
        picture = data[of["offset"] - of["note_offset"] :]
        if zlib.crc32(picture, zlib.crc32(data[: of["note_size"]])) != of["crc32"]:
            raise UnusableRecord("the checksum is another")
        try:
            return read_image(Encoded(picture, "the picture"), least_side)
        except UserError as error:
            raise UnusableRecord(str(error)) from None

    def size(self, index: int) -> tuple[int, int]:
        """Return a picture's width and height as the index has them, pixels."""
        shard, number = self._find(index)
        return int(shard.numbers["width"][number]), int(shard.numbers["height"][number])

    def name(self, index: int) -> str:
        """Return the shard, and the record's number in it."""
        shard, number = self._at(index)
        return f"record {number} of {self.place.address}/{self.shards[shard].tar}"

    def all_captions(self) -> Iterator[tuple[str, ...]]:
        """Yield every picture's captions, shard by shard."""
        for shard in self.shards:
            for part in read_index(self._index(shard), ["captions"]):
                yield from map(tuple, part["captions"].to_pylist())

    def some_captions(self, count: int) -> Iterator[tuple[str, ...]]:
        """Yield captions of the first pictures of some shards, from their indexes alone."""
        some = self.shards[:: max(1, len(self.shards) // _LOOKED_AT)]
        for shard in some:
            parts = read_index(self._index(shard), ["captions"])
            captions = (row for part in parts for row in part["captions"].to_pylist())
            yield from map(tuple, islice(captions, -(-count // len(some))))

    def digest(self) -> str:
        """Return the content's name; `Place` and names of shards are no part of it."""
        return f"{self.manifest.id} {self.split}"

    def bring(self, shard: int) -> None:
        """Fetch a shard and its index, where they are far."""
        entry = self.shards[shard]
        self._index(entry)
        self.place.fetch(entry.tar, entry.sha256)

    def at(self, index: int) -> tuple[ShardEntry, int]:
        """Return the shard of a record, and the record's number in it."""
        shard, number = self._at(index)
        return self.shards[shard], number

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def _at(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard]) + self.shards[shard].records

    def _find(self, index: int) -> tuple[_Shard, int]:
        shard, number = self._at(index)
        return self._opened.get(shard, self._open), number

    def _open(self, shard: int) -> _Shard:
        entry = self.shards[shard]
        parts = list(read_index(self._index(entry), _NUMBERS))
        numbers = {
            # Not `to_numpy`, which loads pandas where it is installed.
            name: np.concatenate([np.from_dlpack(part[name]) for part in parts])
            for name in _NUMBERS
        }
        tar = self.place.fetch(entry.tar, entry.sha256)
        if tar.stat().st_size != entry.size or len(numbers["size"]) != entry.records:
            raise UserError(
                f"{tar} or its index is not as {MANIFEST} says; copy the pack again, and see "
                f"'cascade data check {self.place.address}'."
            )
        return _Shard(tar, numbers)

    def _index(self, entry: ShardEntry) -> Path:
        return self.place.fetch(entry.index, entry.index_sha256)
