"""Write the packs of real photos as webdataset tars, the form in which people have pictures.

    python tools/photo_tars.py ../shared/data/packs OUTPUT

`OUTPUT/tiny64-00000.tar` and on hold 64x64 JPEGs with a `cls` (the words of a class are line N of
`OUTPUT/classes.txt`), `OUTPUT/sr256-00000.tar` and on 256x256 WebPs with a `txt`.
"""

import csv
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

EACH = 2_500  # records of a tar
Record = dict[str, bytes]


def small_photos(packs: Path) -> Iterator[Record]:
    """Yield the photos of 64 pixels: scan data without the header that they share."""
    index = dict(np.load(packs / "tiny64_relevant.idx.npz"))  # each reading decompresses
    blob = (packs / "tiny64_relevant.bin").read_bytes()
    for i in range(len(index["label"])):
        head = index["header_gray" if index["gray"][i] else "header_rgb"].tobytes()
        picture = head + blob[index["offsets"][i] : index["offsets"][i + 1]]
        yield {"jpg": picture, "cls": str(index["label"][i]).encode()}


def large_photos(packs: Path) -> Iterator[Record]:
    """Yield the captioned photos of 256 pixels."""
    offsets = np.load(packs / "sr256_photos.idx.npz")["offsets"]
    blob = (packs / "sr256_photos.bin").read_bytes()
    with (packs / "sr256_photos.tsv").open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            i = int(row["i"])
            yield {"webp": blob[offsets[i] : offsets[i + 1]], "txt": row["caption"].encode()}


def class_names(packs: Path) -> list[str]:
    """Return the first name of each class, by its label."""
    with (packs / "tiny_imagenet_classes.tsv").open(encoding="utf-8", newline="") as table:
        names = {row["wnid"]: row["name"] for row in csv.DictReader(table, delimiter="\t")}
    wnids = np.load(packs / "tiny64_relevant.idx.npz")["wnids"]
    return [names[str(wnid)] for wnid in wnids]


def write(records: Iterator[Record], output: Path, name: str) -> None:
    """Write records into tars of `EACH`."""
    tar: tarfile.TarFile | None = None
    for number, record in enumerate(records):
        if number % EACH == 0:
            if tar is not None:
                tar.close()
            tar = tarfile.open(output / f"{name}-{number // EACH:05d}.tar", "w")  # noqa: SIM115
        assert tar is not None, "the first record opens one"
        for ending, data in record.items():
            member = tarfile.TarInfo(f"{number:06d}.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if tar is not None:
        tar.close()


def main(packs: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write(small_photos(packs), output, "tiny64")
    write(large_photos(packs), output, "sr256")
    (output / "classes.txt").write_text("\n".join(class_names(packs)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
