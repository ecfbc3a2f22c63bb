"""Readers of the shared data folder's packs: many small photos in one file, with an index.

A `tiny64_*` pack stores JPEG scan data without the header its photos have in common; the header
(one for colour, one for grey) stands in the index and is put back in front of each.
"""

import csv
import mmap
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from boxes import Box
from captions import Subject, coarse_noun, subject_of
from cascade.errors import UserError


@dataclass(frozen=True)
class Photo:
    """One decoded photo with what is known of it."""

    image: Image.Image  # RGB
    subject: Subject
    box: Box


def classes(folder: Path) -> dict[str, Subject]:
    """Return the names of the 200 classes by WordNet id, from the table beside the packs."""
    with existing(folder / "tiny_imagenet_classes.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {
        row["wnid"]: subject_of(
            row["wnid"], row["name"], row["synonyms"], row["dreambooth_class"] or ""
        )
        for row in rows
    }


class TinyPack:
    """A `tiny64_*` pack: 64x64 photos with a class and an object box."""

    def __init__(self, folder: Path, name: str) -> None:
        self._blob = _map(folder / f"{name}.bin")
        with np.load(existing(folder / f"{name}.idx.npz")) as index:
            self._offsets = index["offsets"].astype(np.int64)
            self._label, self._box, self._gray = index["label"], index["box"], index["gray"]
            self._wnids = [str(wnid) for wnid in index["wnids"]]
            self._headers = (index["header_rgb"].tobytes(), index["header_gray"].tobytes())
        self._classes = classes(folder)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def members(self, kept: frozenset[str] | None = None) -> dict[str, list[int]]:
        """The photos' places by WordNet id, of all classes or of those `kept`."""
        places: dict[str, list[int]] = {}
        for index, label in enumerate(self._label):
            wnid = self._wnids[label]
            if kept is None or wnid in kept:
                places.setdefault(wnid, []).append(index)
        return places

    def __getitem__(self, index: int) -> Photo:
        scan = self._blob[self._offsets[index] : self._offsets[index + 1]]
        image = Image.open(BytesIO(self._headers[int(self._gray[index])] + scan)).convert("RGB")
        left, top, right, bottom = (int(edge) for edge in self._box[index])
        return Photo(
            image, self._classes[self._wnids[self._label[index]]], (left, top, right, bottom)
        )


class PhotoPack:
    """The `sr256_photos` pack: captioned photos, whole and without boxes."""

    def __init__(self, folder: Path, name: str) -> None:
        self._blob = _map(folder / f"{name}.bin")
        with np.load(existing(folder / f"{name}.idx.npz")) as index:
            self._offsets = index["offsets"].astype(np.int64)
        with existing(folder / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
            self._rows = list(csv.DictReader(file, delimiter="\t"))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Photo:
        record = self._blob[self._offsets[index] : self._offsets[index + 1]]
        image = Image.open(BytesIO(record)).convert("RGB")
        row = self._rows[index]
        name = row["caption"].removeprefix("a photo of ").lower()
        bare = re.sub(r"^an? ", "", name)
        wnid = Path(row["path"]).name.split("_")[0] if row["group"] == "imagenet" else ""
        subject = Subject(bare, (), coarse_noun(wnid), article=bare != name)
        # No box is known: the middle two thirds of each side stand for the object.
        width, height = image.size
        box = (width // 6, height // 6, width - 1 - width // 6, height - 1 - height // 6)
        return Photo(image, subject, box)


def class_filter(path: Path | None) -> frozenset[str] | None:
    """Read the WordNet ids of a file, one at the start of each line; None keeps every class.

    Raises:
        UserError: there is no such file, or it names no class.
    """
    if path is None:
        return None
    lines = existing(path).read_text(encoding="utf-8").splitlines()
    found = frozenset(line.split()[0] for line in lines if re.match(r"n\d{8}\b", line))
    if not found:
        raise UserError(f"{path} names no class; begin lines with WordNet ids such as n02123045.")
    return found


def existing(path: Path) -> Path:
    """Return `path` if it is a file.

    Raises:
        UserError: it is not.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}; give the shared data folder with --shared.")
    return path


def _map(path: Path) -> mmap.mmap:
    with existing(path).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
