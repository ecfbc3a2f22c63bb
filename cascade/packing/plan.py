"""The plan of a pack: its sources cut into parts, which are kept on disk.

A part is a file of JSON lines: what it is, then its records where nothing else lists them. So a
command that was stopped goes on with the same parts, and no source's records are in memory at once.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal

from cascade.data.pack import Split
from cascade.files import read_json, write_json
from cascade.packing.records import LeftOut

_PLANNED: Final = "plan.json"

Kind = Literal["files", "tar", "table", "array"]


@dataclass(frozen=True)
class Part:
    """What one process packs at a time, and what its shards are made of.

    Attributes:
        number: place in the pack.
        kind: how it is read.
        address: of the folder or file.
        name: what its records' sources begin with.
        first: of the row groups or pictures.
        last: the one behind the last.
        split: of the shard that it was.
    """

    number: int
    kind: Kind
    address: str
    name: str
    first: int = 0
    last: int = 0
    split: Split = "train"


@dataclass(frozen=True)
class Planned:
    """What is known when the plan is whole.

    Attributes:
        parts: how many.
        left_out: counted by the reason.
        unused: files that are not taken over, counted by their ending.
    """

    parts: int
    left_out: dict[str, int]
    unused: dict[str, int]


class PlanWriter:
    """Writes the parts, one after another, and what is left out before it is read.

    Args:
        work: folder that keeps the plan.
        most_records: of a part.
        most_bytes: of a part's records.
    """

    def __init__(self, work: Path, most_records: int, most_bytes: int) -> None:
        self.parts, self.unused = 0, Counter[str]()
        self._work, self._most = work, (most_records, most_bytes)
        self._left_out = Counter[str]()
        self._file: IO[str] | None = None
        self._held = (0, 0)
        (work / "parts").mkdir(parents=True, exist_ok=True)
        self._quarantine = quarantine_of(work, None).open("w", encoding="ascii")

    def part(self, kind: Kind, address: str, name: str, **more: Any) -> None:
        """Begin a part."""
        self._end()
        part = Part(number=self.parts, kind=kind, address=address, name=name, **more)
        self._file = (self._work / "parts" / f"{self.parts}.jsonl").open("w", encoding="ascii")
        self._file.write(json.dumps(asdict(part)) + "\n")
        self._held = (0, 0)
        self.parts += 1

    def has_room(self, size: int) -> bool:
        """Report whether a record of this size, bytes, still fits into the part."""
        records, held = self._held
        return records < self._most[0] and (not records or held + size <= self._most[1])

    def record(self, value: Any, size: int) -> None:
        """Add a record to the part."""
        assert self._file is not None, "there is a part"
        self._file.write(json.dumps(value) + "\n")
        self._held = self._held[0] + 1, self._held[1] + size

    def leave(self, left: LeftOut) -> None:
        """Leave something out."""
        self._left_out[left.reason] += 1
        self._quarantine.write(left.dump())

    def close(self) -> None:
        """Mark the plan as whole."""
        self._end()
        self._quarantine.close()
        planned = Planned(parts=self.parts, left_out=dict(self._left_out), unused=dict(self.unused))
        write_json(asdict(planned), self._work / _PLANNED)

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_plan(work: Path) -> Planned | None:
    """Return what is known of a plan; None where there is no whole one."""
    file = work / _PLANNED
    if not file.is_file():
        return None
    found: Any = read_json(file, f"remove {work} to begin anew")
    return Planned(**found)


def read_part(work: Path, number: int) -> tuple[Part, Iterator[Any]]:
    """Return a part, and its records where nothing else lists them."""
    lines = _lines(work / "parts" / f"{number}.jsonl")
    return Part(**next(lines)), lines


def quarantine_of(work: Path, number: int | None) -> Path:
    """Return the file that has what a part, or the plan, leaves out."""
    return work / f"left-{'plan' if number is None else number}.jsonl"


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="ascii") as lines:
        for line in lines:
            yield json.loads(line)
