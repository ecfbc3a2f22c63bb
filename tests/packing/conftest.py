"""Packs written by hand, record by record, as another program would write them."""

import io
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cascade.data.pack import (
    MANIFEST,
    Note,
    PackManifest,
    ShardEntry,
    caption_hash,
    schema,
)
from cascade.files import file_digest


@dataclass(frozen=True)
class Record:
    """A record of a shard: its picture is noise of a seed, unless bytes are given."""

    key: str
    captions: tuple[str, ...] = ("a dog",)
    size: tuple[int, int] = (24, 16)
    phash: int = 0
    licence: str = ""
    source: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    picture: bytes | None = None
    ending: str = "png"

    def encoded(self) -> bytes:
        """The picture's file."""
        if self.picture is not None:
            return self.picture
        width, height = self.size
        noise = np.random.default_rng(zlib.crc32(self.key.encode())).integers(
            0, 256, (height, width, 3), dtype=np.uint8
        )
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        return buffer.getvalue()


Shards = Mapping[str, Sequence[Record]]
WritePack = Callable[..., PackManifest]


def _write_shard(folder: Path, name: str, records: Sequence[Record]) -> None:
    numbers = sorted({number for record in records for number in record.numbers})
    types = schema(numbers)
    columns: dict[str, list[object]] = {column: [] for column in types}
    at = 0
    with tarfile.open(folder / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            note = Note(
                captions=record.captions,
                licence=record.licence,
                source=record.source,
                numbers=dict(record.numbers),
            ).dump()
            picture = record.encoded()
            places = []
            for ending, data in (("json", note), (record.ending, picture)):
                member = tarfile.TarInfo(f"{record.key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                places.append(at + 512)
                at = tar.offset
            row: dict[str, object] = {
                "key": record.key,
                "offset": places[1],
                "size": len(picture),
                "note_offset": places[0],
                "note_size": len(note),
                "crc32": zlib.crc32(picture, zlib.crc32(note)),
                "width": record.size[0],
                "height": record.size[1],
                "captions": list(record.captions),
                "caption_hash": caption_hash(record.captions),
                "phash": record.phash,
                "licence": record.licence,
                "source": record.source,
            }
            for column in columns:
                columns[column].append(row.get(column, record.numbers.get(column)))
    arrow = {"list<string>": pa.list_(pa.string()), "double": pa.float64()}
    fields = [(column, arrow.get(kind) or getattr(pa, kind)()) for column, kind in types.items()]
    table = pa.table(columns, schema=pa.schema(fields))
    parquet.write_table(table, folder / f"{name}.parquet")


def _write_pack(folder: Path, shards: Shards, left_out: Mapping[str, int] = {}) -> PackManifest:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, records in shards.items():
        _write_shard(folder, name, records)
        tar = folder / f"{name}.tar"
        entries.append(
            ShardEntry(
                name=name,
                split="validation" if name.startswith("validation") else "train",
                records=len(records),
                size=tar.stat().st_size,
                sha256=file_digest(tar),
                index_sha256=file_digest(folder / f"{name}.parquet"),
            )
        )
    numbers = sorted(
        {number for records in shards.values() for record in records for number in record.numbers}
    )
    manifest = PackManifest(shards=tuple(entries), numbers=tuple(numbers), left_out=dict(left_out))
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


@pytest.fixture(scope="session")
def write_pack() -> WritePack:
    """Write a pack: its records by shard; a shard whose name says so is for validation."""
    return _write_pack


@pytest.fixture(scope="session")
def record() -> type[Record]:
    """What `write_pack` is given."""
    return Record
