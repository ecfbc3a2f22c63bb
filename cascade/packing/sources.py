"""Finding what sources hold, and cutting it into parts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cascade.config.pack import PackConfig
from cascade.data.array import CAPTIONS, IMAGES
from cascade.data.finding import FOREIGN_SUFFIXES, MASK_SUFFIX, PICTURE_SUFFIXES
from cascade.data.pack import MANIFEST, PackManifest
from cascade.data.place import is_address
from cascade.errors import UserError
from cascade.packing.arrays import plan_array
from cascade.packing.files import Entry, Files, Unreadable, expanded
from cascade.packing.metadata import METADATA, Metadata
from cascade.packing.plan import PlanWriter
from cascade.packing.records import BESIDE, FOREIGN, MOST_BYTES, TOO_LARGE, LeftOut, kind_of
from cascade.packing.tables import plan_table
from cascade.packing.tars import TAR_SUFFIXES
from cascade.text.captions import CAPTION_FIELDS


class _Governed(NamedTuple):
    """A table of metadata, and the folder whose pictures it tells of."""

    table: Metadata
    folder: str


@dataclass
class Planner:
    """Goes through sources.

    Attributes:
        config: the settings.
        work: a folder for what is large.
        plan: gets the parts.
    """

    config: PackConfig
    work: Path
    plan: PlanWriter

    def add(self, source: str) -> None:
        """Add a source.

        Raises:
            UserError: it is not there, or holds nothing that can be packed.
        """
        before = self.plan.parts
        try:
            self._add(source)
        except Unreadable as error:
            raise UserError(
                f"{source} cannot be packed: of {error.address}, {error}; check the path and its "
                "rights."
            ) from None
        if self.plan.parts == before:
            raise UserError(
                f"{source} holds nothing to pack; give a folder of pictures, webdataset tars, "
                "Parquet files with pictures, an array data set or a pack."
            )

    def file(self, file: Files, name: str) -> None:
        """Add a tar or a Parquet file."""
        if name.lower().endswith(".parquet"):
            plan_table(file, name, self.config, self.plan)
        else:
            self.plan.part("tar", file.address, name)

    def _add(self, source: str) -> None:
        for address in (source,) if _is_there(source) else expanded(source):
            files = Files(_absolute(address))
            name = files.name
            if name.lower().endswith((*TAR_SUFFIXES, ".parquet")) and not files.is_folder():
                if not files.exists():
                    raise UserError(f"There is no {address}; check the path.")
                self.file(files, name)
            elif files.is_folder():
                _Folder(self, files).go("", None)
            else:
                raise UserError(
                    f"{address} is no folder, tar or Parquet file that is there; check the path."
                )


class _Folder:
    """Goes through a folder and all below it."""

    def __init__(self, planner: Planner, root: Files) -> None:
        self._planner, self._plan, self._root = planner, planner.plan, root
        self._part_of = -1  # the part that its pictures go into, while that is open

    def go(self, inner: str, governed: _Governed | None) -> None:
        """Add what a folder holds; a picture's metadata is in the nearest table above it."""
        entries = self._root.inside(inner).listed()
        names = {entry.name for entry in entries if not entry.is_folder}
        if MANIFEST in names:
            return self._pack(inner)
        if IMAGES in names and CAPTIONS in names:
            return plan_array(self._root.inside(inner), self._named(inner), self._plan)
        own = self._metadata(inner, names)
        for entry in entries:
            if not entry.is_folder and not entry.name.startswith("."):
                self._file(inner, entry, names, own or governed)
        for entry in entries:
            if entry.is_folder and not entry.name.startswith("."):
                self.go(_joined(inner, entry.name), own or governed)
        if own is not None:
            own.table.close(self._plan)
        return None

    def _named(self, inner: str) -> str:
        return _joined(self._root.name, inner) if inner else self._root.name

    def _metadata(self, inner: str, names: set[str]) -> _Governed | None:
        found = next((name for name in METADATA if name in names), None)
        if found is None:
            return None
        path = _joined(inner, found)
        depth = inner.count("/") + bool(inner)
        database = self._planner.work / f"metadata-{depth}.sqlite"
        asked = self._planner.config.caption_column
        texts = frozenset({*CAPTION_FIELDS, *((asked,) if asked else ())})
        table = self._root.inside(path)
        return _Governed(Metadata(table, self._named(path), database, self._plan, texts), inner)

    def _file(self, inner: str, entry: Entry, names: set[str], governed: _Governed | None) -> None:
        path, low = _joined(inner, entry.name), entry.name.lower()
        suffix = f".{low.rpartition('.')[2]}" if "." in low else ""
        if low.endswith((*TAR_SUFFIXES, ".parquet")):
            if entry.name not in METADATA:
                self._planner.file(self._root.inside(path), self._named(path))
        elif low.endswith(MASK_SUFFIX):
            self._plan.unused[MASK_SUFFIX.lstrip("-")] += 1
        elif suffix in PICTURE_SUFFIXES:
            self._picture(path, entry, names, governed)
        elif suffix in FOREIGN_SUFFIXES:
            self._plan.leave(LeftOut(self._named(path), FOREIGN))
        elif suffix[1:] not in BESIDE and entry.name not in METADATA:
            self._plan.unused[kind_of(entry.name)] += 1

    def _picture(
        self, path: str, entry: Entry, names: set[str], governed: _Governed | None
    ) -> None:
        said: Sequence[dict[str, Any]] = ()
        if governed is not None:
            said = governed.table.take(path.removeprefix(f"{governed.folder}/"))
        if entry.size > MOST_BYTES:
            source = self._named(path)
            self._plan.leave(LeftOut(source, TOO_LARGE, f"{entry.size} bytes"))
            return
        if self._part_of != self._plan.parts or not self._plan.has_room(entry.size):
            self._plan.part("files", self._root.address, self._root.name)
            self._part_of = self._plan.parts
        stem = entry.name.rpartition(".")[0]
        beside = [ending for ending in BESIDE if f"{stem}.{ending}" in names]
        self._plan.record([path, beside, said], entry.size)

    def _pack(self, inner: str) -> None:
        folder = self._root.inside(inner)
        try:
            said = json.loads(folder.inside(MANIFEST).read())
        except ValueError as error:
            raise UserError(
                f"{folder.inside(MANIFEST).address} is no JSON ({error}); copy it again."
            ) from None
        for shard in PackManifest.parse(said, folder.inside(MANIFEST).address).shards:
            name = _joined(self._named(inner), shard.tar)
            self._plan.part("tar", folder.inside(shard.tar).address, name, split=shard.split)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _is_there(source: str) -> bool:
    return not is_address(source) and Path(source).exists()


def _absolute(address: str) -> str:
    return address if is_address(address) else str(Path(address).absolute())
