"""The openly licensed photos of the shared folder's `sr256_photos` pack: clothing and groceries.

A pack is one file of WebP records with an index of where each begins, and a table that describes
them. Its other photos fall under terms that forbid most uses, and are never read here.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cascade.errors import UserError

PACK: Final = "sr256_photos"
OPEN: Final = {"clothing": "CC0-1.0", "grocery": "MIT"}
"""Groups of the pack that are used, and their licences."""


@dataclass(frozen=True)
class Photograph:
    """One photo.

    Attributes:
        image: RGB, 256 pixels square.
        caption: "a photo of a t-shirt".
        group: a key of `OPEN`.
        number: its row in the pack.
    """

    image: Image.Image
    caption: str
    group: str
    number: int


def read_photographs(folder: Path) -> Iterator[Photograph]:
    """Yield the pack's openly licensed photos in their order."""
    paths = [folder / f"{PACK}{suffix}" for suffix in (".bin", ".idx.npz", ".tsv")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"There is no {path}; give the folder of the photo packs.")
    data, index, table = paths
    with np.load(index) as file:
        offsets = file["offsets"].astype(np.int64)
    with table.open(encoding="utf-8", newline="") as lines, data.open("rb") as records:
        for row, start, end in zip(
            csv.DictReader(lines, delimiter="\t"), offsets[:-1], offsets[1:], strict=True
        ):
            if row["group"] in OPEN:
                records.seek(start)
                with Image.open(BytesIO(records.read(end - start))) as image:
                    rgb = image.convert("RGB")
                yield Photograph(rgb, row["caption"].lower(), row["group"], int(row["i"]))
