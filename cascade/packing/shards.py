"""Writing of shards: tars whose bytes are a function of their records, and their indexes."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from cascade.config.aspect import Aspect
from cascade.data.pack import Split, caption_hash, import_parquet, schema
from cascade.files import replacing
from cascade.packing.pictures import Record

_BLOCK: Final = 512
_RECORD: Final = 10_240  # that a tar is filled up to


@dataclass(frozen=True)
class Piece:
    """A shard of one part, which may become one with others.

    Attributes:
        name: of its files in the working folder, without the ending.
        split: what its pictures are for.
        aspect: that all of them are nearest to, where they are sorted by it.
        records: how many.
        payload: bytes of the tar before its end mark.
        sha256: of the tar.
    """

    name: str
    split: Split
    aspect: Aspect | None
    records: int
    payload: int
    sha256: str

    @property
    def tar(self) -> str:
        """Name of the tar."""
        return f"{self.name}.tar"

    @property
    def index(self) -> str:
        """Name of the index."""
        return f"{self.name}.parquet"


class TarFile:
    """A tar that is written; its digest is known at the end.

    Attributes:
        at: bytes written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.at = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        self._file.write(data)
        self._digest.update(data)
        self.at += len(data)

    def member(self, name: str, data: bytes) -> int:
        """Write a member; return where its bytes begin."""
        header = tarfile.TarInfo(name)  # no time, no owner
        header.size = len(data)
        self.write(header.tobuf(tarfile.USTAR_FORMAT))
        begin = self.at
        self.write(data)
        self.write(bytes(-len(data) % _BLOCK))
        return begin

    def end(self) -> str:
        """Write the end mark; return the SHA-256 of the file."""
        self.write(bytes(2 * _BLOCK))
        self.write(bytes(-self.at % _RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()


class ShardWriter:
    """A shard that is being written; without `close` nothing of it stays."""

    def __init__(self, folder: Path, name: str, split: Split, aspect: Aspect | None = None) -> None:
        self._folder, self._name = folder, name
        self._split, self._aspect = split, aspect
        self._stack, self._rows = ExitStack(), list[dict[str, Any]]()
        partial = self._stack.enter_context(replacing(folder / f"{name}.tar"))
        self._tar = TarFile(self._stack.enter_context(partial.open("wb")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def records(self) -> int:
        """How many records it has."""
        return len(self._rows)

    @property
    def size(self) -> int:
        """Bytes of its tar so far."""
        return self._tar.at

    def add(self, key: str, record: Record) -> None:
        """Add a record."""
        note = record.note.dump()
        self._rows.append(
            {
                "key": key,
                "note_offset": self._tar.member(f"{key}.json", note),
                "offset": self._tar.member(f"{key}.{record.ending}", record.picture),
                "size": len(record.picture),
                "note_size": len(note),
                "crc32": zlib.crc32(record.picture, zlib.crc32(note)),
                "width": record.size[0],
                "height": record.size[1],
                "captions": list(record.note.captions),
                "caption_hash": caption_hash(record.note.captions),
                "phash": record.phash,
                "licence": record.note.licence,
                "source": record.note.source,
                **record.note.numbers,
            }
        )

    def close(self) -> tuple[Piece, tuple[str, ...]]:
        """Finish it; return it, and the names of its records' numbers."""
        payload = self._tar.at
        sha256 = self._tar.end()
        numbers = sorted(set().union(*self._rows) - set(schema(())))
        write_index(self._folder / f"{self._name}.parquet", rows_table(self._rows, numbers))
        self._stack.close()
        piece = Piece(
            name=self._name,
            split=self._split,
            aspect=self._aspect,
            records=self.records,
            payload=payload,
            sha256=sha256,
        )
        self._rows = []
        return piece, tuple(numbers)


def arrow_schema(numbers: Sequence[str]) -> Any:
    """Return the schema of an index."""
    import pyarrow

    types = {"list<string>": pyarrow.list_(pyarrow.string()), "double": pyarrow.float64()}
    return pyarrow.schema(
        [
            (name, types[kind] if kind in types else pyarrow.type_for_alias(kind))
            for name, kind in schema(numbers).items()
        ]
    )


def rows_table(rows: Iterable[Mapping[str, Any]], numbers: Sequence[str]) -> Any:
    """Return rows of an index as a `pyarrow.Table`; a number that a row lacks is null."""
    import pyarrow

    return pyarrow.Table.from_pylist(list(rows), schema=arrow_schema(numbers))


def write_index(path: Path, table: Any) -> None:
    """Write an index; see `replacing`."""
    with replacing(path) as partial:
        import_parquet().write_table(table, partial, compression="zstd")
