"""The format of a packed data set: webdataset tars, an index beside each, and one manifest.

A pack is a folder, on a disk or in an object store:

* `pack.json`: the `PackManifest`; it is written last, so a folder without it is unfinished;
* `NAME.tar`: a shard, uncompressed; a record is two members side by side, `KEY.json` (the `Note`)
  and `KEY.jpg`, `.png` or whatever the picture is, so that one read of one range gets both, and
  every reader of webdataset tars reads them too;
* `NAME.parquet`: the shard's index, a row per record in the tar's order, with the `COLUMNS` and one
  column of float64 for every number that people brought (a score of aesthetics, of similarity);
* `quarantine.jsonl`: what was left out, `{"source", "reason"}` a line.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field

from cascade.config.aspect import Aspect
from cascade.config.base import Frozen, Name
from cascade.errors import UserError
from cascade.files import read_json

MANIFEST: Final = "pack.json"
QUARANTINE: Final = "quarantine.jsonl"

Split = Literal["train", "validation"]

ASPECTS: Final[tuple[Aspect, ...]] = (
    *((1, 2), (9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 9), (2, 1)),
)
"""That pictures are sorted by; each belongs to the nearest, by the ratio of the ratios."""

COLUMNS: Final = {
    "key": "string",  # the members' name without its ending
    "offset": "int64",  # of the picture's bytes in the tar
    "size": "int64",  # of the picture, bytes
    "note_offset": "int64",  # of the note's bytes in the tar, before the picture's
    "note_size": "int64",
    "crc32": "uint32",  # of note and picture, zlib.crc32 of one behind the other
    "width": "int32",  # of the picture as viewers show it, pixels
    "height": "int32",
    "captions": "list<string>",
    "caption_hash": "uint64",  # `caption_hash` of all of them
    "phash": "uint64",  # perceptual hash, DCT of 8x8 (64 bits)
    "licence": "string",  # "" where nobody said
    "source": "string",  # where the picture is from, an address or a path
}
"""Columns of an index and their Arrow types."""

_ROWS: Final = 2**16  # of an index that are held at once

_Size = Annotated[int, Field(strict=True, ge=0)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ShardEntry(Frozen):
    """A shard in the manifest."""

    name: Name = Field(description="of its files, without the ending")
    split: Split = Field(default="train", description="what its pictures are for")
    aspect: Aspect | None = Field(
        default=None, description="that its pictures are nearest to, where they were sorted by it"
    )
    records: Annotated[int, Field(strict=True, gt=0)] = Field(description="pictures in it")
    size: _Size = Field(description="of the tar, bytes")
    sha256: _Digest = Field(description="of the tar")
    index_sha256: _Digest = Field(description="of the index")

    @property
    def tar(self) -> str:
        """Name of the tar."""
        return f"{self.name}.tar"

    @property
    def index(self) -> str:
        """Name of the index."""
        return f"{self.name}.parquet"


class PackManifest(Frozen):
    """`pack.json`: the shards of a data set, in order, and how it was made."""

    shards: tuple[ShardEntry, ...] = Field(min_length=1, description="the shards, in order")
    numbers: tuple[str, ...] = Field(default=(), description="columns of numbers people brought")
    left_out: dict[str, _Size] = Field(
        default_factory=dict, description="records that were left out, counted by the reason"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="what it was packed with")
    format: Literal[1] = Field(default=1, description="of the pack")

    @property
    def id(self) -> str:
        """A name of the pack's content, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.split} {shard.sha256}\n".encode())
        return digest.hexdigest()[:16]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the manifest.

        Raises:
            UserError: it is missing or damaged.
        """
        mend = "copy the data again, or pack it to its end"
        return cls.parse(read_json(path, mend), str(path))

    def of_split(self, split: Split) -> tuple[ShardEntry, ...]:
        """Return the shards of a split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)


class Note(Frozen):
    """`KEY.json` of a record: everything that is known of a picture beside its pixels."""

    captions: tuple[str, ...] = Field(min_length=1, description="equally good ones")
    licence: str = Field(default="", description="of the picture")
    source: str = Field(default="", description="where it is from")
    numbers: dict[str, float] = Field(default_factory=dict, description="scores people brought")

    def dump(self) -> bytes:
        """Return its bytes in a tar."""
        return json.dumps(self.model_dump(), ensure_ascii=False).encode("utf-8", "surrogatepass")


def caption_hash(captions: Sequence[str]) -> int:
    """Return 64 bits by which captions that changed are found."""
    digest = hashlib.blake2b(json.dumps(list(captions)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def schema(numbers: Sequence[str]) -> Mapping[str, str]:
    """Return the columns of an index, and their Arrow types."""
    return COLUMNS | dict.fromkeys(numbers, "double")


def read_index(path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield a shard's index in parts, each a `pyarrow.RecordBatch`: no index is held whole.

    Args:
        columns: those that are read; None reads all.

    Raises:
        UserError: it is no index.
    """
    parquet = import_parquet()
    import pyarrow

    try:
        with parquet.ParquetFile(path) as file:
            held = file.schema_arrow.names
            missing = [name for name in columns or COLUMNS if name not in held]
            if missing:
                raise UserError(f"{path} has no column '{missing[0]}'; copy the data again.")
            yield from file.iter_batches(_ROWS, columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read ({told}); copy the data again.") from None


def is_index(path: Path) -> bool:
    """Report whether a file is a shard's index, whatever it is called."""
    try:
        next(read_index(path), None)
    except UserError:
        return False
    return True


def import_parquet() -> Any:
    """Return `pyarrow.parquet`, which only packs need."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(
            "Packed data needs pyarrow; install the extra 'data': pip install 'dreamcascade[data]'."
        ) from None
    return parquet
