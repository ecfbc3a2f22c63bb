"""Near copies of pictures are taken out of a pack, found by their perceptual hashes.

A hash is of 64 bits of a picture's brightness, coarse and without colour. So pictures that are
uniform all have the same two hashes, whatever their colour (black's, and one bit beside it every
other's), and one of them is kept. And among N pictures that have nothing in common each has by
chance one within D bits: N times 4e-14 at D = 4, 3e-10 at 8, 2e-7 at 12, 4e-5 at 16.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import IO, Any, Final, get_args

import numpy as np

from cascade.data.pack import (
    MANIFEST,
    QUARANTINE,
    PackManifest,
    ShardEntry,
    Split,
    is_index,
    read_index,
)
from cascade.errors import UserError
from cascade.files import file_digest, remove_partials, replacing, write_json
from cascade.packing.hashes import BITS, first_of_copies
from cascade.packing.shards import write_index
from cascade.progress import progress_bar, say, warn

REASON: Final = "duplicate"
"""Of what is left out, in the manifest; the quarantine tells of whom."""

_BLOCK: Final = 512  # bytes of a tar, which members are padded to
_COPIED: Final = 2**24  # bytes at a time
_BY_CHANCE: Final = 0.01  # share of unrelated pictures taken for copies that people are told of
_GENERATION: Final = re.compile(r"(.*)\.(\d+)")


def drop_duplicates(folder: Path, distance: int) -> int:
    """Take near copies out of a pack on this machine; return how many.

    Pictures stay by their order, validation's first: a picture to train on that is near one of
    validation's goes, so that the validation set is the same whatever is added to train on.

    A shard that loses records is written anew under a new name, the manifest last of all, and then
    shards that it does not name are removed. So the pack is whole at every moment, a killed call is
    made again, and what was made beside the old shards is not taken for the new ones'. Shards that
    lose something lie on the disk twice for a while.

    Memory is that of `first_of_copies`, and the keys of pictures that have copies.

    Args:
        folder: of the pack.
        distance: bits of 64 that may differ, 0 to 16.

    Raises:
        UserError: there is no whole pack, or it is damaged; it is as it was.
    """
    manifest = PackManifest.load(folder / MANIFEST)
    shards = _by_rank(manifest)
    sizes = [shard.records for shard in shards]
    _tell_chance(sum(sizes), distance)
    hashes = np.concatenate([_hashes(folder, shard) for shard in shards])
    stays = np.split(first_of_copies(hashes, distance), np.cumsum(sizes)[:-1])
    starts = np.cumsum([0, *sizes[:-1]])
    dropped = [
        kept != np.arange(start, start + len(kept))
        for kept, start in zip(stays, starts, strict=True)
    ]
    found = int(sum(some.sum() for some in dropped))
    if found:
        originals = [kept[goes] for kept, goes in zip(stays, dropped, strict=True)]
        names = _Names(folder, shards, starts, np.concatenate(originals))
        block = folder / f".{QUARANTINE}.{os.getpid()}.lines.partial"
        made: dict[str, ShardEntry | None] = {}
        try:
            with progress_bar() as bar, block.open("wb") as lines:
                task = bar.add_task("Copies taken out", total=len(shards), details="")
                for shard, goes, of in zip(shards, dropped, originals, strict=True):
                    if goes.any():
                        lines.writelines(_lines(folder / shard.index, goes, names.of(of)))
                        made[shard.name] = _without(folder, shard, ~goes)
                    bar.advance(task)
            _append(block, folder / QUARANTINE)
        finally:
            block.unlink(missing_ok=True)
        _publish(folder, manifest, made, found)
    _remove_unnamed(folder)
    say(f"{found} of {sum(sizes)} pictures were near copies of others and are left out.")
    return found


def _by_rank(manifest: PackManifest) -> list[ShardEntry]:
    """Return the shards in the order in which pictures stay."""
    first: Split = "validation"
    splits = (first, *(split for split in get_args(Split) if split != first))
    return [shard for split in splits for shard in manifest.of_split(split)]


def _tell_chance(count: int, distance: int) -> None:
    near = count * sum(comb(BITS, bits) for bits in range(distance + 1)) / 2**BITS
    if near > _BY_CHANCE:
        warn(
            f"Of {count} pictures each has {near:.2g} others within {distance} bits of its hash by "
            "chance alone; with a smaller distance fewer that differ are taken for copies."
        )


def _hashes(folder: Path, shard: ShardEntry) -> np.ndarray:
    """Return a shard's perceptual hashes, and make sure that its files are whole."""
    tar, index = folder / shard.tar, folder / shard.index
    if not tar.is_file() or not index.is_file():
        raise UserError(f"There is no {shard.tar} or {shard.index} in {folder}; copy them again.")
    parts = [part.column(0).to_numpy() for part in read_index(index, ["phash"])]
    hashes = np.concatenate([np.empty(0, np.uint64), *parts])
    if len(hashes) != shard.records or tar.stat().st_size != shard.size:
        raise UserError(
            f"{shard.name} in {folder} is not as {MANIFEST} says; see what 'cascade data check' "
            "finds, and copy or pack it again."
        )
    return hashes


class _Names:
    """Keys of pictures that have copies, found by their places in the order of all."""

    def __init__(
        self, folder: Path, shards: Sequence[ShardEntry], starts: np.ndarray, places: np.ndarray
    ) -> None:
        import pyarrow as pa

        self._places = np.unique(places)
        bounds = np.searchsorted(self._places, [*starts, np.iinfo(np.int64).max])
        found: list[Any] = []
        for shard, start, begin, end in zip(shards, starts, bounds[:-1], bounds[1:], strict=True):
            if begin < end:
                parts = [part.column(0) for part in read_index(folder / shard.index, ["key"])]
                rows = self._places[begin:end] - start
                found.extend(pa.chunked_array(parts).take(pa.array(rows)).chunks)
        self._keys = pa.concat_arrays(found)

    def of(self, places: np.ndarray) -> list[str]:
        keys: list[str] = self._keys.take(np.searchsorted(self._places, places)).to_pylist()
        return keys


def _lines(index: Path, goes: np.ndarray, originals: Sequence[str]) -> Iterator[bytes]:
    """Yield the quarantine's lines of a shard's records that go."""
    at, copies = 0, iter(originals)
    for part in read_index(index, ["key", "source"]):
        some = part.filter(_mask(goes[at : at + len(part)]))
        at += len(part)
        for key, source in zip(*(column.to_pylist() for column in some.columns), strict=True):
            line = {"source": source or key, "reason": f"{REASON} of {next(copies)}"}
            yield f"{json.dumps(line)}\n".encode()


def _without(folder: Path, shard: ShardEntry, stays: np.ndarray) -> ShardEntry | None:
    """Write a shard anew with some of its records, byte for byte; None where none stays."""
    if not stays.any():
        return None
    import pyarrow as pa

    table = pa.Table.from_batches(list(read_index(folder / shard.index)))
    offset, size, note = (table[name].to_numpy() for name in ("offset", "size", "note_offset"))
    ends = offset + -(-size // _BLOCK) * _BLOCK
    # What is before a record's note, its headers, belongs to it.
    starts = np.r_[0, ends[:-1]]
    moved = np.cumsum(np.where(stays, 0, ends - starts))
    for name, values in (("offset", offset - moved), ("note_offset", note - moved)):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.schema.field(name), pa.array(values))
    name = _next_name(shard.name)
    tar, index = folder / f"{name}.tar", folder / f"{name}.parquet"
    # Before the tar, which is known by it to be a shard's.
    write_index(index, table.filter(_mask(stays)))
    bounds = np.flatnonzero(np.diff(np.r_[False, stays, False]))  # of the runs that stay
    with (
        replacing(tar) as partial,
        (folder / shard.tar).open("rb") as source,
        partial.open("wb") as target,
    ):
        for first, last in bounds.reshape(-1, 2).tolist():
            _copy(source, target, int(starts[first]), int(ends[last - 1]))
        _copy(source, target, int(ends[-1]), shard.size)
        target.flush()
        os.fsync(target.fileno())
    changes = {
        "name": name,
        "records": int(stays.sum()),
        "size": tar.stat().st_size,
        "sha256": file_digest(tar),
        "index_sha256": file_digest(index),
    }
    return ShardEntry(**dict(shard) | changes)


def _next_name(name: str) -> str:
    """Return a shard's name with its generation: NAME.1, NAME.2, ..."""
    earlier = _GENERATION.fullmatch(name)
    return f"{earlier[1]}.{int(earlier[2]) + 1}" if earlier else f"{name}.1"


def _mask(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.array(values)


def _copy(source: IO[bytes], target: IO[bytes], start: int, end: int) -> None:
    source.seek(start)
    while start < end:
        data = source.read(min(_COPIED, end - start))
        if not data:
            raise UserError(f"{source.name} ends early; copy it again.")
        target.write(data)
        start += len(data)


def _append(block: Path, target: Path) -> None:
    """Put lines behind a file's, unless a call that was killed has done it."""
    size, before = block.stat().st_size, target.stat().st_size if target.is_file() else 0
    with replacing(target) as partial, partial.open("wb") as file, block.open("rb") as lines:
        if before:
            with target.open("rb") as old:
                old.seek(max(0, before - size))
                done = before >= size and _same(old, lines)
                _copy(old, file, 0, before - size if done else before)
        _copy(lines, file, 0, size)


def _same(one: IO[bytes], other: IO[bytes]) -> bool:
    """Report whether the rests of two files are equal."""
    while data := one.read(_COPIED):
        if data != other.read(_COPIED):
            return False
    return not other.read(1)


def _publish(
    folder: Path, manifest: PackManifest, made: Mapping[str, ShardEntry | None], found: int
) -> None:
    """Write the manifest that names the new shards."""
    shards = (made.get(shard.name, shard) for shard in manifest.shards)
    left_out = {**manifest.left_out, REASON: manifest.left_out.get(REASON, 0) + found}
    changes = {"shards": tuple(shard for shard in shards if shard), "left_out": left_out}
    new = PackManifest.parse(dict(manifest) | changes, str(folder / MANIFEST))
    write_json(new.model_dump(mode="json"), folder / MANIFEST)


def _remove_unnamed(folder: Path) -> None:
    """Remove shards that the manifest does not name: old ones, and those of a killed call."""
    named = {shard.name for shard in PackManifest.load(folder / MANIFEST).shards}
    for index in folder.glob("*.parquet"):
        if index.stem not in named and is_index(index):
            index.with_suffix(".tar").unlink(missing_ok=True)
            index.unlink()
    remove_partials(folder)
