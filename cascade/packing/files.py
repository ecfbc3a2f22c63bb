"""Files of a folder or of an object store: listed, opened, read."""

import errno
import io
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from cascade.data.place import Unreachable, file_system, is_address, persistently
from cascade.errors import UserError

_BUFFER: Final = 2**20  # bytes read at once
_PASSING: Final = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)  # of disks in a network
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")


class Unreadable(Exception):
    """A file is not there, or may not be read: no later asking helps, and other files can be."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(reason)
        self.address = address


class Entry(NamedTuple):
    """What a folder holds."""

    name: str
    size: int
    is_folder: bool


@dataclass(frozen=True)
class Files:
    """A file, or the files below a folder.

    Attributes:
        address: of fsspec, or a path.
    """

    address: str

    @property
    def name(self) -> str:
        """Its last part."""
        if not is_address(self.address):
            return Path(self.address).absolute().name
        return self.address.partition("?")[0].rstrip("/").rpartition("/")[2]

    def inside(self, name: str) -> "Files":
        """Return what a folder holds by this name."""
        return Files(f"{self.address.rstrip('/')}/{name}") if name else self

    def is_folder(self) -> bool:
        """Report whether it is a folder."""
        system, root = file_system(self.address)
        return bool(self._asked(system.isdir, root))

    def exists(self) -> bool:
        """Report whether there is such a file or folder."""
        system, root = file_system(self.address)
        return bool(self._asked(system.exists, root))

    def listed(self) -> list[Entry]:
        """List a folder, in the order of the names."""
        if not is_address(self.address):
            return sorted(_local(Path(self.address)))
        system, root = file_system(self.address)
        found = self._asked(system.ls, root, detail=True)
        return sorted(
            Entry(posixpath.basename(name), int(one.get("size") or 0), one["type"] == "directory")
            for one in found
            if (name := str(one["name"]).rstrip("/")) != root.rstrip("/")
        )

    def open(self, forwards: bool = False) -> io.BufferedReader:
        """Open it for reading.

        Args:
            forwards: it is read from front to back, which servers allow that know no ranges.

        Raises:
            Unreadable: there is none, or this one is kept from us.
            Unreachable: the store does not answer, now or while it is read.
        """
        system, root = file_system(self.address)
        streams = forwards and self.address.startswith(("http://", "https://"))
        named = {"block_size": 0} if streams else {}
        opened = self._asked(system.open, root, "rb", **named)
        return io.BufferedReader(_Reading(opened, self), _BUFFER)

    def read(self) -> bytes:
        """Read it whole; errors as of `open`."""
        system, root = file_system(self.address)
        return bytes(self._asked(system.cat_file, root))

    def _asked(self, ask: Any, *given: Any, **named: Any) -> Any:
        """Ask a store, again and again where it does not answer."""
        return persistently(lambda: self.answered(ask, *given, **named))

    def answered(self, ask: Any, *given: Any, **named: Any) -> Any:
        """Ask a store, and tell its own errors as `Unreachable`."""
        try:
            return ask(*given, **named)
        except (MemoryError, UserError):
            raise
        except FileNotFoundError:
            raise Unreadable(self.address, "its file is not there") from None
        except OSError as error:
            # Far away, what fails for one file may fail for all.
            if is_address(self.address) or error.errno in _PASSING:
                raise self._unreachable(error) from None
            raise Unreadable(self.address, "its file cannot be read") from None
        except Exception as error:  # noqa: BLE001  each store has its own errors
            raise self._unreachable(error) from None

    def _unreachable(self, trouble: object) -> Unreachable:
        return Unreachable(
            f"{self.address} could not be read ({trouble}); check the address, the network and "
            "the permissions, and start the same command again: it goes on."
        )


class _Reading(io.RawIOBase):
    """An open file whose store may stop answering."""

    def __init__(self, stream: Any, files: Files) -> None:
        self._stream, self._files = stream, files

    def readinto(self, buffer: Any) -> int:
        data = self._files.answered(self._stream.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def close(self) -> None:
        self._stream.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())


def _local(folder: Path) -> Iterator[Entry]:
    """List a folder of this machine; links lead on, except to a folder that they are in."""
    for entry in os.scandir(folder):
        try:
            is_folder, size = entry.is_dir(), entry.stat().st_size
        except OSError:  # a link that leads nowhere: reading it will say so
            is_folder, size = False, 0
        else:
            if not is_folder and not entry.is_file():  # a pipe would never end
                continue
        if is_folder and entry.is_symlink():
            real = Path(entry.path).resolve()
            if folder.resolve().is_relative_to(real):
                continue
        yield Entry(entry.name, size, is_folder)


def expanded(text: str) -> Iterator[str]:
    """Yield what a list in braces stands for: `a-{00..02}.tar`, `{train,test}.tar`."""
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    ends = _RANGE.fullmatch(found[1])
    if ends is not None:
        width = len(ends[1])
        words = [f"{number:0{width}}" for number in range(int(ends[1]), int(ends[2]) + 1)]
    else:
        words = found[1].split(",")
    for word in words:
        yield from expanded(f"{text[: found.start()]}{word}{text[found.end() :]}")
