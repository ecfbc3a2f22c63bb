"""Packing of one part: what a worker process does."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cascade.config.aspect import Aspect
from cascade.config.pack import PackConfig
from cascade.data.pack import Split
from cascade.data.place import is_address, persistently
from cascade.files import read_json, write_json
from cascade.packing.arrays import read_array
from cascade.packing.files import Files, Unreadable
from cascade.packing.pictures import Record, is_held_out, nearest_aspect, prepared
from cascade.packing.plan import Part, quarantine_of, read_part
from cascade.packing.records import Found, LeftOut, Refused, row_of_json
from cascade.packing.shards import Piece, ShardWriter
from cascade.packing.tables import read_table
from cascade.packing.tars import Tar

_Kind = tuple[Split, Aspect | None]

_ATTEMPTS: Final = 4
_AT_ONCE: Final = 16  # files of a far folder, in memory
_FIRST_WAIT: Final = 2.0  # seconds; doubled after each failed attempt


@dataclass(frozen=True)
class Result:
    """What became of a part.

    Attributes:
        pieces: its shards.
        numbers: names of their numbers.
        left_out: counted by the reason.
        unused: members that are not taken over, counted by their ending.
    """

    pieces: tuple[Piece, ...]
    numbers: tuple[str, ...]
    left_out: dict[str, int]
    unused: dict[str, int]


@dataclass(frozen=True)
class Job:
    """What every part is packed with.

    Attributes:
        work: folder that gets the shards.
        config: the settings.
        class_names: of the classes' numbers.
    """

    work: Path
    config: PackConfig
    class_names: tuple[str, ...]


def read_result(work: Path, number: int) -> Result | None:
    """Return what became of a part; None where it is not done."""
    path = _result(work, number)
    if not path.is_file():
        return None
    found: Any = read_json(path, f"remove {work} to begin anew")
    pieces = tuple(
        Piece(**{**piece, "aspect": piece["aspect"] and tuple(piece["aspect"])})
        for piece in found.pop("pieces")
    )
    return Result(pieces=pieces, **found)


def pack_part(job: Job, number: int, tick: Callable[[], None]) -> None:
    """Pack a part, and note that it is done; try again where its store does not answer.

    Args:
        job: what it is packed with.
        number: of the part.
        tick: called with every record; what it raises ends the work.
    """
    # Also where one breaks off that is being read.
    result = persistently(lambda: _packed(job, number, tick))
    write_json(asdict(result), _result(job.work, number))


def _packed(job: Job, number: int, tick: Callable[[], None]) -> Result:
    part, rows = read_part(job.work, number)
    unused: dict[str, int] = {}
    with (
        quarantine_of(job.work, number).open("w", encoding="ascii") as quarantine,
        _Shards(job, number) as shards,
    ):
        left_out = Counter[str]()
        for place, found in enumerate(_records(part, rows, job.config, unused)):
            tick()
            left: LeftOut
            if isinstance(found, LeftOut):
                left = found
            else:
                try:
                    record = prepared(found, job.config, job.class_names)
                except Refused as refused:
                    left = LeftOut(found.source, refused.reason, refused.detail)
                else:
                    shards.add(f"{number:06d}-{place:08d}", record, part.split)
                    continue
            left_out[left.reason] += 1
            quarantine.write(left.dump())
        shards.finish()
    return Result(
        pieces=tuple(shards.pieces),
        numbers=tuple(sorted(shards.numbers)),
        left_out=dict(sorted(left_out.items())),
        unused=dict(sorted(unused.items())),
    )


def _records(
    part: Part, rows: Iterator[Any], config: PackConfig, unused: dict[str, int]
) -> Iterator[Found | LeftOut]:
    match part.kind:
        case "files":
            yield from _of_files(part, rows)
        case "tar":
            yield from Tar(part, unused).read()
        case "table":
            yield from read_table(part, config)
        case "array":
            yield from read_array(part, rows)


def _of_files(part: Part, rows: Iterator[Any]) -> Iterator[Found | LeftOut]:
    """Yield the records of a folder; those of a far one are asked for side by side."""
    if not is_address(part.address):
        yield from (_of_file(part, *row) for row in rows)
        return
    waiting = deque[Future[Found | LeftOut]]()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for row in rows:
            waiting.append(pool.submit(_of_file, part, *row))
            if len(waiting) == _AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _of_file(part: Part, path: str, beside: list[str], said: list[Any]) -> Found | LeftOut:
    """Read a picture's file and what lies beside it."""
    root, source = Files(part.address), f"{part.name}/{path}"
    try:
        stem = path.rpartition(".")[0]
        texts = {ending: root.inside(f"{stem}.{ending}").read() for ending in beside}
        if "json" in texts:
            said = [*said, row_of_json(texts["json"])]
        picture = root.inside(path).read()
        return Found(source, picture, tuple(said), texts.get("txt"), texts.get("cls"))
    except Unreadable as error:
        return LeftOut(source, str(error))
    except Refused as refused:
        return LeftOut(source, refused.reason)


@dataclass
class _Shards:
    """The shards of a part: of each kind, one at a time is being written."""

    job: Job
    number: int
    pieces: list[Piece] = field(default_factory=list)
    numbers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._open: dict[_Kind, ShardWriter] = {}
        self._begun = 0

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, key: str, record: Record, split: Split) -> None:
        config = self.job.config
        if is_held_out(record.phash, config.held_out):
            split = "validation"
        kind = split, nearest_aspect(record.size) if config.by_aspect else None
        shard = self._open.get(kind)
        if shard is not None and (
            shard.records >= config.shard_records
            or shard.size + len(record.picture) > config.shard_size << 20
        ):
            self._close(kind)
            shard = None
        if shard is None:
            shard = self._open[kind] = self._stack.enter_context(self._begin(*kind))
        shard.add(key, record)

    def finish(self) -> None:
        """Close what is still open."""
        for kind in list(self._open):
            self._close(kind)

    def _begin(self, split: Split, aspect: Aspect | None) -> ShardWriter:
        self._begun += 1
        return ShardWriter(self.job.work, f"{self.number}-{self._begun}", split, aspect)

    def _close(self, kind: _Kind) -> None:
        piece, numbers = self._open.pop(kind).close()
        self.pieces.append(piece)
        self.numbers.update(numbers)


def _result(work: Path, number: int) -> Path:
    return work / f"done-{number}.json"
