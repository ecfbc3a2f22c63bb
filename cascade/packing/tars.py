"""Webdataset tars: members with the same name but for the ending are one record."""

import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Final, cast

from cascade.data.finding import FOREIGN_SUFFIXES, PICTURE_SUFFIXES
from cascade.packing.files import Files, Unreadable
from cascade.packing.plan import Part
from cascade.packing.records import (
    BESIDE,
    FOREIGN,
    MOST_BYTES,
    TOO_LARGE,
    Found,
    LeftOut,
    Refused,
    kind_of,
    row_of_json,
)

TAR_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
# Everything that a damaged archive raises.
_DAMAGED: Final = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error)
_CUT: Final = "a tar that ends too early"


class Tar:
    """Reads a tar's records in order.

    Attributes:
        unused: counts the members that are not taken over, by their ending.
    """

    def __init__(self, part: Part, unused: dict[str, int]) -> None:
        self._part, self.unused = part, unused
        self._reading = ""  # the key of the member that is being read

    def read(self) -> Iterator[Found | LeftOut]:
        """Yield the records; what cannot be read any more is one of the left out."""
        group: dict[str, bytes | int] = {}
        key = ""
        for member in self._members():
            if isinstance(member, LeftOut):
                if self._reading != key:  # else the rest of this record is behind the cut
                    yield from self._record(key, group)
                yield member
                return
            name, data = member
            own, ending = _parted(name)
            if own != key or ending in group:
                yield from self._record(key, group)
                key, group = own, {}
            group[ending] = data
        yield from self._record(key, group)

    def _members(self) -> Iterator[tuple[str, bytes | int] | LeftOut]:
        """Yield names and what is in them, or the size of what is too large."""
        try:
            with (
                Files(self._part.address).open(forwards=True) as stream,
                _Archive.open(fileobj=stream, mode="r|*") as tar,
            ):
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it keeps all
                    if not member.isfile() or _is_hidden(member.name):
                        continue
                    if member.size > MOST_BYTES:
                        yield member.name, member.size
                        continue
                    self._reading = _parted(member.name)[0]
                    data = cast(Any, tar.extractfile(member)).read()
                    if len(data) < member.size:
                        raise tarfile.ReadError("unexpected end of data")
                    self._reading = ""
                    yield member.name, data
                if not tar.ended:
                    raise tarfile.ReadError("there is no end mark")
        except Unreadable as error:
            yield LeftOut(self._part.name, str(error))
        except _DAMAGED as error:
            yield LeftOut(self._part.name, _CUT, str(error))

    def _record(self, key: str, group: dict[str, bytes | int]) -> Iterator[Found | LeftOut]:
        if not group:
            return
        source = f"{self._part.name}/{key}"
        pictures = [end for end in group if f".{end.rpartition('.')[2]}" in PICTURE_SUFFIXES]
        plain = [end for end in pictures if "." not in end]
        texts = {end.rpartition(".")[2]: end for end in group}
        used = {*pictures, *(texts[kind] for kind in BESIDE if kind in texts)}
        for ending in group.keys() - used:
            kind = kind_of(ending)
            self.unused[kind] = self.unused.get(kind, 0) + 1
        chosen = plain or pictures
        if len(chosen) != 1:
            foreign = any(f".{end}" in FOREIGN_SUFFIXES for end in group)
            yield LeftOut(source, "several pictures" if chosen else _none(foreign))
            return
        picture = group[chosen[0]]
        if isinstance(picture, int):
            yield LeftOut(source, TOO_LARGE, f"{picture} bytes")
            return
        said = {kind: group[texts[kind]] for kind in BESIDE if kind in texts}
        text, told, label = (
            value if isinstance(value := said.get(kind), bytes) else None for kind in BESIDE
        )
        try:
            rows = () if told is None else (row_of_json(told),)
        except Refused as refused:
            yield LeftOut(source, refused.reason)
            return
        yield Found(f"{source}.{chosen[0]}", picture, rows, text, label)


class _Member(tarfile.TarInfo):
    """A member; where the archive's end mark is instead, it notes that it was there."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            cast(_Archive, tar).ended = True
            raise


class _Archive(tarfile.TarFile):
    """A tar that knows whether it was read to its end: `tarfile` takes a cut there for one."""

    tarinfo = _Member
    ended = False


def _none(foreign: bool) -> str:
    return FOREIGN if foreign else "no picture"


def _parted(name: str) -> tuple[str, str]:
    """Return a member's key, and its ending from the first dot on."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}".removeprefix("./"), ending.lower()


def _is_hidden(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith((".", "__")) or not base
