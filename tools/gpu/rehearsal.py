"""A pre-training in miniature: drawn photos in packs, and a plan of seconds on a CPU."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cascade.files import write_bytes
from gpu.parts import split
from gpu.pretrain_plan import BASE, LARGE, PACKS, Plan

_TINY = (
    "stage.unet.channels=[16,16,32]",
    "stage.unet.blocks=[1,1,1]",
    "stage.unet.head_channels=16",
    "stage.unet.time_width=32",
    "stage.unet.context_width=32",
    "stage.sampler.steps=2",
    "validation.images_per_prompt=1",
    "train.batch_size=4",
    "train.steps=2",
    "train.log_every=1",
    "train.compile=false",
)
PLAN: Final = Plan(
    size=16,
    high=64,
    minutes={BASE: 0.1, LARGE: 0.1},
    reserve={BASE: 0.0, LARGE: 0.0},
    settings={
        BASE: (*_TINY, "stage.size=16"),
        LARGE: (*_TINY, "stage.size=64", "stage.low_res.size=16", "stage.low_res.crop=32"),
    },
    probe_steps=1,
    pictures=16,
    few=8,
    guidance=(1.0,),
    enlargements=2,
    batch_size=8,
)

# Names and class nouns; the second is scenery, which composites need.
_CLASSES: Final = {
    "n02085620": ("Chihuahua", "dog"),
    "n09428293": ("seashore", ""),
    "n04285008": ("sports car", ""),
}
# Which of the classes a pack holds in turn, and how many photos: 54 to train the base on.
_PACKS: Final = {PACKS[0]: ((0, 1), 36), PACKS[1]: ((2,), 18), "tiny64_val": ((0, 1, 2), 24)}
_LARGE_PHOTOS: Final = 10
_SIDE: Final = 64


def make_materials(folder: Path) -> None:
    """Write a data folder: packs of drawn photos, masks and a subject."""
    packs = folder / "data" / "packs"
    rows = [f"{wnid}\t{name}\t{name}\t{noun}" for wnid, (name, noun) in _CLASSES.items()]
    table = "\n".join(["wnid\tname\tsynonyms\tdreambooth_class", *rows]) + "\n"
    write_bytes(table.encode(), packs / "tiny_imagenet_classes.tsv")
    for pack, (labels, count) in _PACKS.items():
        _tiny_pack(packs / pack, [labels[number % len(labels)] for number in range(count)])
    _photo_pack(packs / "sr256_photos")
    masks = np.zeros((4, _SIDE, _SIDE), np.uint8)
    masks[:, 16:48, 16:48] = 255
    for pack in PACKS:
        # Every other photo: in the first pack those show no scenery.
        index = np.array([0, 2, 4, 6], np.int32)
        _write_arrays({"index": index, "masks": masks}, folder / "cutouts" / f"{pack}.npz")
    subjects = folder / "data" / "subjects"
    write_bytes(b"subject_name,class\ndog,dog\n", subjects / "prompts_and_classes.txt")
    write_bytes(_photo(0, 2 * PLAN.high, "JPEG"), subjects / "dog" / "00.jpg")
    # One file in parts, as it is carried where only small ones may be.
    whole = packs / f"{PACKS[1]}.bin"
    split(whole, packs, 0.01)
    whole.unlink()


def _tiny_pack(path: Path, labels: Sequence[int]) -> None:
    """Photos of 64 pixels; each record is a whole file, so that the common header is empty."""
    scans = [_photo(number, _SIDE, "JPEG") for number in range(len(labels))]
    write_bytes(b"".join(scans), path.with_name(f"{path.name}.bin"))
    arrays: dict[str, NDArray[np.generic]] = {
        "offsets": np.cumsum([0, *map(len, scans)]),
        "label": np.array(labels, np.uint8),
        "box": np.tile(np.array([16, 16, 47, 47], np.uint8), (len(labels), 1)),
        "gray": np.zeros(len(labels), np.bool_),
        "wnids": np.array(list(_CLASSES)),
        "header_rgb": np.zeros(0, np.uint8),
        "header_gray": np.zeros(0, np.uint8),
    }
    _write_arrays(arrays, path.with_name(f"{path.name}.idx.npz"))


def _photo_pack(path: Path) -> None:
    """Photos as large as the super-resolution stage's pictures."""
    files = [_photo(number, PLAN.high, "WEBP") for number in range(_LARGE_PHOTOS)]
    write_bytes(b"".join(files), path.with_name(f"{path.name}.bin"))
    arrays = {"offsets": np.cumsum([0, *map(len, files)])}
    _write_arrays(arrays, path.with_name(f"{path.name}.idx.npz"))
    rows = [
        f"{number}\tclothing\ta photo of a shirt\tnone\t{number}.jpg"
        for number in range(_LARGE_PHOTOS)
    ]
    table = "\n".join(["i\tgroup\tcaption\trepo\tpath", *rows]) + "\n"
    write_bytes(table.encode(), path.with_name(f"{path.name}.tsv"))


def _photo(number: int, side: int, kind: str) -> bytes:
    """A bright shape on noise, as a file; a function of the number."""
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    corner, far = side // 4, 3 * side // 4
    ImageDraw.Draw(image).ellipse((corner, corner, far, far), fill=(200, 60, 9 * number % 256))
    file = BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def _write_arrays(arrays: Mapping[str, NDArray[np.generic]], path: Path) -> None:
    file = BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write_bytes(file.getvalue(), path)
