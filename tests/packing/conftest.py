"""Packs written by hand, record by record, as another program would write them."""

import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from cascade.data.pack import (
    MANIFEST,
    QUARANTINE,
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


def _write_shard(
    folder: Path, name: str, records: Sequence[Record], numbers: Sequence[str]
) -> None:
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
    numbers = sorted(
        {number for records in shards.values() for record in records for number in record.numbers}
    )
    entries = []
    for name, records in shards.items():
        _write_shard(folder, name, records, numbers)
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


Picture = Callable[..., bytes]


def _picture(seed: int, size: tuple[int, int] = (48, 32), kind: str = "JPEG") -> bytes:
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture() -> Picture:
    """Encode a picture: a soft pattern of a seed."""
    return _picture


Members = Iterable[tuple[str, bytes]]


def _tar_of(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tar_of() -> Callable[[Members], bytes]:
    """Make a tar of names and what is in them."""
    return _tar_of


def _rows_of(pack: Path) -> list[dict[str, Any]]:
    manifest = PackManifest.load(pack / MANIFEST)
    rows = []
    for shard in manifest.shards:
        data = (pack / shard.tar).read_bytes()
        with tarfile.open(pack / shard.tar) as tar:
            names = tar.getnames()
        index = parquet.read_table(pack / shard.index)
        assert index.schema.names == list(schema(manifest.numbers))
        assert (shard.sha256, shard.size) == (file_digest(pack / shard.tar), len(data))
        assert shard.index_sha256 == file_digest(pack / shard.index)
        assert len(index) == shard.records == len(names) / 2
        for place, row in enumerate(index.to_pylist()):
            picture = data[row["offset"] :][: row["size"]]
            note = data[row["note_offset"] :][: row["note_size"]]
            assert zlib.crc32(picture, zlib.crc32(note)) == row["crc32"]
            assert names[2 * place] == f"{row['key']}.json"
            said = Note(**json.loads(note))
            assert list(said.captions) == row["captions"]
            assert caption_hash(said.captions) == row["caption_hash"]
            assert (said.licence, said.source) == (row["licence"], row["source"])
            with Image.open(io.BytesIO(picture)) as image:
                assert image.size == (row["width"], row["height"])
            rows.append({**row, "picture": picture, "split": shard.split})
    return rows


RowsOf = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def rows_of() -> RowsOf:
    """Read a pack's rows with their pictures and splits; tars, notes and indexes must agree."""
    return _rows_of


def _left_of(pack: Path) -> dict[str, str]:
    lines = (pack / QUARANTINE).read_text(encoding="utf-8").splitlines()
    return {line["source"]: line["reason"] for line in map(json.loads, lines)}


@pytest.fixture(scope="session")
def left_of() -> Callable[[Path], dict[str, str]]:
    """Read a pack's quarantine: the reason of each source."""
    return _left_of
