"""From the pieces of all parts to a pack: small ones joined, numbered, and the manifest."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from cascade.config.pack import PackConfig
from cascade.data.pack import (
    ASPECTS,
    MANIFEST,
    QUARANTINE,
    PackManifest,
    ShardEntry,
    Split,
    import_parquet,
)
from cascade.files import file_digest, replacing, write_json
from cascade.packing.part import read_result
from cascade.packing.plan import Planned, quarantine_of
from cascade.packing.shards import Piece, TarFile, arrow_schema, write_index

_COPIED: Final = 2**22  # bytes at a time


@dataclass
class Finished:
    """What all parts came to.

    Attributes:
        pieces: in the order of the parts.
        numbers: names of their numbers.
        left_out: counted by the reason.
        unused: members and files that are not taken over, counted by their ending.
    """

    pieces: list[Piece] = field(default_factory=list)
    numbers: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)


def gather(work: Path, planned: Planned) -> Finished:
    """Read what all parts came to."""
    found = Finished()
    found.left_out.update(planned.left_out)
    found.unused.update(planned.unused)
    for number in range(planned.parts):
        result = read_result(work, number)
        assert result is not None, "every part is done"
        found.pieces.extend(result.pieces)
        found.numbers.update(result.numbers)
        found.left_out.update(result.left_out)
        found.unused.update(result.unused)
    return found


def finish(
    output: Path, work: Path, found: Finished, config: PackConfig, settings: Mapping[str, Any]
) -> None:
    """Move the shards into their place; write the manifest last."""
    numbers = sorted(found.numbers)
    entries = []
    for split in get_args(Split):
        groups = [
            joined
            for aspect in (None, *ASPECTS)
            for joined in _joined(
                (one for one in found.pieces if (one.split, one.aspect) == (split, aspect)), config
            )
        ]
        for number, joined in enumerate(groups):
            entries.append(_placed(output, work, f"{split}-{number:06d}", joined, numbers))
    manifest = PackManifest(
        shards=tuple(entries),
        numbers=tuple(numbers),
        left_out=dict(sorted(found.left_out.items())),
        settings=dict(settings),
    )
    write_json(manifest.model_dump(mode="json"), output / MANIFEST)


def write_quarantine(output: Path, work: Path, parts: int) -> None:
    """Put together what the plan and all parts left out."""
    with replacing(output / QUARANTINE) as partial, partial.open("wb") as file:
        for number in (None, *range(parts)):
            with quarantine_of(work, number).open("rb") as left:
                shutil.copyfileobj(left, file)


def _joined(pieces: Iterable[Piece], config: PackConfig) -> Iterator[list[Piece]]:
    """Group neighbours that fit into one shard: parts may be small, and few are held out."""
    group: list[Piece] = []
    for piece in pieces:
        grown = [*group, piece]
        if group and (
            sum(one.records for one in grown) > config.shard_records
            or sum(one.payload for one in grown) > config.shard_size << 20
        ):
            yield group
            grown = [piece]
        group = grown
    if group:
        yield group


def _placed(
    output: Path, work: Path, name: str, pieces: Sequence[Piece], numbers: Sequence[str]
) -> ShardEntry:
    """Make a shard of its pieces, unless a command that was stopped has; remove them."""
    tar, index = output / f"{name}.tar", output / f"{name}.parquet"
    if not tar.is_file():
        write_index(index, _index(work, pieces, numbers))
        if len(pieces) == 1:
            (work / pieces[0].tar).replace(tar)
        else:
            with replacing(tar) as partial:
                _join(work, pieces, partial)
    for piece in pieces:
        (work / piece.tar).unlink(missing_ok=True)
        (work / piece.index).unlink(missing_ok=True)
    return ShardEntry(
        name=name,
        split=pieces[0].split,
        aspect=pieces[0].aspect,
        records=sum(piece.records for piece in pieces),
        size=tar.stat().st_size,
        sha256=pieces[0].sha256 if len(pieces) == 1 else file_digest(tar),
        index_sha256=file_digest(index),
    )


def _join(work: Path, pieces: Sequence[Piece], target: Path) -> None:
    with target.open("wb") as file:
        tar = TarFile(file)
        for piece in pieces:
            with (work / piece.tar).open("rb") as source:
                left = piece.payload
                while left:
                    data = source.read(min(_COPIED, left))
                    tar.write(data)
                    left -= len(data)
        tar.end()


def _index(work: Path, pieces: Sequence[Piece], numbers: Sequence[str]) -> Any:
    """Return the index of joined pieces, with a column for every number of the pack."""
    import pyarrow
    import pyarrow.compute as compute

    schema = arrow_schema(numbers)
    tables, before = [], 0
    for piece in pieces:
        table = import_parquet().read_table(work / piece.index)
        columns = []
        for column in schema:
            if column.name in ("offset", "note_offset"):
                columns.append(compute.add(table[column.name], before))
            elif column.name in table.column_names:
                columns.append(table[column.name])
            else:
                columns.append(pyarrow.nulls(len(table), column.type))
        tables.append(pyarrow.Table.from_arrays(columns, schema=schema))
        before += piece.payload
    return pyarrow.concat_tables(tables).combine_chunks()
