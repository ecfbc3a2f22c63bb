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
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from cascade.config.base import Frozen, Name

MANIFEST: Final = "pack.json"
QUARANTINE: Final = "quarantine.jsonl"

Split = Literal["train", "validation"]

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

_Size = Annotated[int, Field(strict=True, ge=0)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ShardEntry(Frozen):
    """A shard in the manifest."""

    name: Name = Field(description="of its files, without the ending")
    split: Split = Field(default="train", description="what its pictures are for")
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
