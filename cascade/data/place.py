"""Where a data set lies: a folder, or an address of an object store that fsspec knows.

What is far is fetched whole, file by file, into a folder that all processes of a machine share and
whose size is bounded.
"""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from filelock import FileLock

from cascade.errors import UserError
from cascade.files import file_digest
from cascade.progress import warn

_Got = TypeVar("_Got")

_ATTEMPTS: Final = 5
_FIRST_WAIT: Final = 0.5  # seconds; doubled after each failed attempt
_GRACE: Final = 10.0  # seconds in which a file that was asked for is surely opened
_GONE: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Unreachable(UserError):
    """A store does not answer: asking again later may help."""


def persistently(ask: Callable[[], _Got]) -> _Got:
    """Ask again where a store does not answer, ever more patiently."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return ask()
        except Unreachable as error:
            warn(f"{error} Trying again.")
            time.sleep(_FIRST_WAIT * 2**attempt)
    return ask()


def is_address(text: str) -> bool:
    """Report whether a text is an address and no path: `s3://bucket/data`."""
    return "://" in text


@dataclass(frozen=True)
class Place:
    """A folder of files that are read and never changed.

    Attributes:
        address: a path, or an address with its scheme.
        cache: gets what is fetched from an address.
        cache_bytes: that the cache may hold; what was unused for longest goes.
    """

    address: str
    cache: Path
    cache_bytes: int = 2**40

    @property
    def is_far(self) -> bool:
        """Whether files have to be fetched."""
        return is_address(self.address)

    def inside(self, name: str) -> "Place":
        """Return a folder in it."""
        return Place(f"{self.address.rstrip('/')}/{name}", self.cache, self.cache_bytes)

    def has(self, name: str) -> bool:
        """Report whether there is a file of this name."""
        if not self.is_far:
            return (Path(self.address) / name).is_file()
        system, root = file_system(self.address)
        return bool(self._tried(lambda: system.exists(f"{root}/{name}"), name))

    def names(self) -> frozenset[str]:
        """Return the names of its files in one listing; none where there is no such folder."""
        if not self.is_far:
            folder = Path(self.address)
            entries = os.scandir(folder) if folder.is_dir() else ()
            return frozenset(entry.name for entry in entries if entry.is_file())
        system, root = file_system(self.address)

        def ask() -> frozenset[str]:
            system.invalidate_cache()  # what another process has written since
            found = system.ls(root, detail=True) if system.isdir(root) else ()
            files = (entry["name"] for entry in found if entry["type"] == "file")
            return frozenset(name.rpartition("/")[2] for name in files)

        return self._tried(ask, "its list of files")

    def fetch(self, name: str, sha256: str | None = None, fresh: bool = False) -> Path:
        """Return a file's path on this machine; fetch it where it is far and not there yet.

        Args:
            name: of the file.
            sha256: that a fetched file must have.
            fresh: fetch it whether it is there or not: it may have changed.

        Raises:
            UserError: there is no such file, the place does not answer, or answers wrong.
        """
        if not self.is_far:
            path = Path(self.address) / name
            if not path.is_file():
                raise UserError(f"There is no {name} in {self.address}; copy the data again.")
            return path
        path = self._cached(name, sha256)
        if fresh or not path.is_file():
            _make_folder(path.parent)
            # Several processes of this machine ask for the same shard at about the same time.
            with FileLock(path.with_name(f".{path.name}.lock")):
                if fresh or not path.is_file():
                    self._fetch(name, path, sha256)
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _GRACE / 2:
                os.utime(path)
        return path

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return a part of a file, of which nothing else is fetched; less where the file ends.

        Raises:
            UserError: as `fetch`.
        """
        if not self.is_far:
            with self.fetch(name).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        system, root = file_system(self.address)
        end = offset + size
        return bytes(self._tried(lambda: system.cat_file(f"{root}/{name}", offset, end), name))

    def _cached(self, name: str, sha256: str | None = None) -> Path:
        """Return where a file is kept: beside those of the same name and another content."""
        key = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        return self.cache / key / (sha256 or "latest")[:16] / name

    def _fetch(self, name: str, path: Path, sha256: str | None) -> None:
        system, root = file_system(self.address)

        partial = path.with_name(f".{name}.{os.getpid()}.partial")

        def get() -> None:
            system.get_file(f"{root}/{name}", str(partial))
            if sha256 is not None and file_digest(partial) != sha256:
                raise ConnectionError("what arrived has another checksum")

        try:
            self._tried(get, name)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _shrink(self.cache, self.cache_bytes, path)

    def _tried(self, ask: Callable[[], _Got], name: str) -> _Got:
        def once() -> _Got:
            try:
                return ask()
            except _GONE:
                raise UserError(
                    f"There is no {name} in {self.address}; copy the data again."
                ) from None
            except Exception as error:  # noqa: BLE001  each store has its own errors
                raise Unreachable(
                    f"{self.address}/{name} could not be read ({error}); check the address, the "
                    "network and the permissions."
                ) from None

        return persistently(once)


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address or a path, and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise UserError(
            f"Reading {address} needs fsspec; install the extra 'data': pip install "
            "'dreamcascade[data]'."
        ) from None
    if not is_address(address):  # which fsspec would take apart at "::" and the like
        return fsspec.filesystem("file"), str(Path(address).absolute())
    try:
        system, root = fsspec.core.url_to_fs(address.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be opened ({error}); install what it names.") from None
    return system, str(root)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache {folder} cannot be written ({error.strerror}); name another folder."
        ) from None


def _shrink(cache: Path, limit: int, kept: Path) -> None:
    """Remove what was unused for longest until a cache is small enough.

    What was just asked for stays, so the limit may be passed for a moment. A file that another
    process has open stays readable to it.
    """
    files = []
    for path in cache.glob("*/*/[!.]*"):
        with suppress(FileNotFoundError):  # another process has just removed it
            files.append((path.stat(), path))
    size, now = sum(stat.st_size for stat, _ in files), time.time()
    for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
        if size <= limit or now - stat.st_mtime < _GRACE:
            return
        if path != kept:
            path.unlink(missing_ok=True)
            size -= stat.st_size
