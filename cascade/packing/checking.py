"""A pack is compared with what its manifest and its indexes say, down to each picture."""

import multiprocessing
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import IO, Any, Final, NamedTuple

import numpy as np
from pydantic import ValidationError

from cascade.config.look import CheckConfig
from cascade.data.decoding import Encoded, PictureError, read_upright
from cascade.data.order import mixed
from cascade.data.pack import Note, PackManifest, ShardEntry, caption_hash, read_index
from cascade.errors import UserError
from cascade.files import file_digest
from cascade.launch import cores, end_with_parent
from cascade.packing.fetching import fetched, read_manifest
from cascade.progress import progress_bar

_READ: Final = (
    *("key", "offset", "size", "note_offset", "note_size", "crc32", "width", "height"),
    *("captions", "caption_hash", "licence", "source"),
)


_OTHER: Final = "another sha256 than the manifest says"


class Fault(NamedTuple):
    """What is not as it should be.

    Attributes:
        shard: its name.
        key: of the record; empty where a whole file is at fault.
        reason: in words.
    """

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}{'/' if self.key else ''}{self.key}: {self.reason}"


class Checked(NamedTuple):
    """What a check has found.

    Attributes:
        records: that the manifest names.
        decoded: pictures that were decoded, or could not be.
        faults: in the order of the shards and of their records.
    """

    records: int
    decoded: int
    faults: tuple[Fault, ...]


def check_pack(place: str, config: CheckConfig) -> Checked:
    """Check a pack, near or far; what is far is fetched, shard by shard, and goes again.

    Compared are the files' checksums; of each record its bytes' checksum, its note, the note's
    captions with the index's; of each that is decoded whether it can be, and its size.

    Raises:
        UserError: there is no manifest; all that may be wrong beyond it is a fault.
    """
    manifest = read_manifest(place)
    work = partial(_check_shard, place, manifest.numbers, config)
    found = dict(_each(work, manifest, config.workers or cores()))
    return Checked(
        records=sum(shard.records for shard in manifest.shards),
        decoded=sum(decoded for decoded, _ in found.values()),
        faults=tuple(fault for shard in manifest.shards for fault in found[shard.name][1]),
    )


_Found = tuple[int, list[Fault]]
"""Pictures of a shard that were decoded, and its faults."""


def _each(
    work: "partial[_Found]", manifest: PackManifest, workers: int
) -> Iterator[tuple[str, _Found]]:
    """Yield what is found in each shard, as it is found."""
    shards, done, faults = manifest.shards, 0, 0
    with progress_bar() as bar:
        total = sum(shard.records for shard in shards)
        task = bar.add_task("Records", total=total, details="")
        for shard, found in _in_processes(work, shards, workers):
            done, faults = done + shard.records, faults + len(found[1])
            bar.update(task, completed=done, details=f"{faults} faults" if faults else "")
            yield shard.name, found


def _in_processes(
    work: "partial[_Found]", shards: Sequence[ShardEntry], workers: int
) -> Iterator[tuple[ShardEntry, _Found]]:
    if min(workers, len(shards)) == 1:
        yield from ((shard, work(shard)) for shard in shards)
        return
    # Not forked: this process may have threads, and a fork of those that hold a lock hangs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(shards)), context, end_with_parent) as pool:
        jobs = {pool.submit(work, shard): shard for shard in shards}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _check_shard(
    place: str, numbers: Sequence[str], config: CheckConfig, shard: ShardEntry
) -> _Found:
    """Check a shard's files, and its records as far as these can be read."""
    faults: list[Fault] = []
    decoded = rows = 0

    def fault(reason: str, key: str = "") -> None:
        faults.append(Fault(shard.name, key, reason))

    try:
        with fetched(place, shard.index) as index, fetched(place, shard.tar) as tar:
            size = tar.stat().st_size
            if size != shard.size:
                fault(f"{shard.tar} has {size} bytes, and {shard.size} in the manifest")
            elif file_digest(tar) != shard.sha256:
                fault(f"{shard.tar} has {_OTHER}")
            if file_digest(index) != shard.index_sha256:
                # Nor does it say what the records should be.
                fault(f"{shard.index} has {_OTHER}")
            elif not config.quick:
                with tar.open("rb") as file:
                    for part in read_index(index, [*_READ, *numbers]):
                        keys = mixed(config.seed, np.arange(rows, rows + len(part)))
                        chosen = (keys >> np.uint64(11)) * 2.0**-53 < config.sample
                        for row, decodes in zip(part.to_pylist(), chosen.tolist(), strict=True):
                            if reason := _reason(file, row, decodes):
                                fault(reason, row["key"])
                        decoded += int(chosen.sum())
                        rows += len(part)
                if rows != shard.records:
                    fault(f"{shard.index} has {rows} records, and {shard.records} in the manifest")
    except UserError as error:  # a file is missing, or is no index
        fault(str(error).rstrip("."))
    except OSError as error:
        fault(f"it cannot be read ({error})")
    return decoded, faults


def _reason(tar: IO[bytes], row: dict[str, Any], decodes: bool) -> str:
    """Say what is wrong with a record; empty where nothing is."""
    parts = []
    for name in ("note_", ""):
        offset, size = row[f"{name}offset"], row[f"{name}size"]
        if offset < 0 or size < 0:
            return "the index has no place in the tar for it"
        tar.seek(offset)
        parts.append(tar.read(size))
        if len(parts[-1]) != size:
            return "the tar ends before it does"
    data, picture = parts
    if zlib.crc32(picture, zlib.crc32(data)) != row["crc32"]:
        return "its bytes are not those that were packed (crc32)"
    try:
        note = Note.model_validate_json(data)
    except ValidationError as error:
        return f"its note cannot be read ({error.errors()[0]['msg']})"
    said = {
        "captions": list(note.captions),
        "caption_hash": caption_hash(note.captions),
        "licence": note.licence,
        "source": note.source,
        **{name: value for name, value in note.numbers.items() if name in row},
    }
    for name, value in said.items():
        if row[name] != value:
            return f"its note says another {name} than the index"
    if not decodes:
        return ""
    try:
        image = read_upright(Encoded(picture, row["key"]))
    except PictureError as error:
        return f"its picture {error.fault}"
    noted = row["width"], row["height"]
    if image.size != noted:
        return "its picture is {}x{}, and {}x{} in the index".format(*image.size, *noted)
    return ""
