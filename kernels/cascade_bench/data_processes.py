"""What a process and those that it started take: memory and processor time, as Linux tells."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cascade.errors import UserError

_PROCESSES: Final = Path("/proc")
_EVERY: Final = 0.1  # seconds between two looks


def family(root: int | None = None) -> list[int]:
    """Return a process, this one by default, and all that stem from it.

    Raises:
        UserError: this system does not tell.
    """
    parents = {number: _stat(number) for number in _numbers()}
    found = [root or os.getpid()]
    for member in found:  # it grows meanwhile
        found += [one for one, stat in parents.items() if stat and int(stat[1]) == member]
    return found


def processor_seconds(processes: list[int]) -> float:
    """Return the processor's time that processes have taken."""
    ticks = [int(stat[11]) + int(stat[12]) for one in processes if (stat := _stat(one))]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def resident(processes: list[int]) -> int:
    """Return the bytes that processes hold; what several share is counted once."""
    return sum(map(_proportional, processes))


class Peak:
    """Watches the memory of this process and of those it starts, from a thread."""

    def __init__(self) -> None:
        self._most = 0
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def take(self) -> int:
        """Return the most, bytes, since this was asked before."""
        self._look()
        with self._lock:
            most, self._most = self._most, 0
        return most

    def _look(self) -> None:
        held = resident(family())
        with self._lock:
            self._most = max(self._most, held)

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            self._look()


def _numbers() -> list[int]:
    if not _PROCESSES.is_dir():
        raise UserError("This system does not tell what processes take; measure on Linux.")
    return [int(folder.name) for folder in _PROCESSES.iterdir() if folder.name.isdecimal()]


def _stat(process: int) -> list[str]:
    """Return the fields of `stat` behind the name, proc(5); none of a process that has ended."""
    return _read(process, "stat").rpartition(")")[2].split()


def _proportional(process: int) -> int:
    lines = _read(process, "smaps_rollup").splitlines()
    kibibytes = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return 1024 * int(kibibytes[0]) if kibibytes else 0


def _read(process: int, name: str) -> str:
    try:
        return (_PROCESSES / str(process) / name).read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended
        return ""
