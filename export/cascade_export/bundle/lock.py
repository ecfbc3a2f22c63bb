"""One process at a time writes into a bundle; any number of them draw from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from cascade.errors import UserError

LOCK: Final = ".export.lock"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Keep every other export out of a folder, made if need be.

    A lock ends with the process that holds it, however it ends.

    Raises:
        UserError: another export is writing there, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"Another export is writing into {folder}; start this one again when it has ended, or "
            "choose another folder."
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def require_free(folder: Path) -> None:
    """Check that no other export is writing into a folder; leave nothing behind."""
    if (folder / LOCK).exists():
        with writing(folder):
            pass
