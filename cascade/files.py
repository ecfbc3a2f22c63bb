"""Writing files so that nobody ever sees half of one."""

import os
from pathlib import Path


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file atomically: to a neighbour first, then renamed into place.

    Runs that make the same file at the same time do not disturb each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
