"""Packs to read: one of photo-like pictures, and one whose many shards are links to the same file.

The links cost no room, and every index that is read is a real one: only the pictures repeat.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cascade.data.pack import MANIFEST, Note, PackManifest, ShardEntry, read_index
from cascade.files import file_digest, write_bytes
from cascade.packing.pictures import Record
from cascade.packing.shards import ShardWriter

SIZES: Final = ((512, 384), (1024, 768), (1600, 1200), (2048, 1536))
"""Width and height of the pictures in turn, pixels: what sets collected from the web hold."""

SMALL: Final = 64
"""Side of the pictures that are repeated, pixels."""

_QUALITY: Final = 90  # of the JPEGs: about a third of a byte for each pixel
_FALL: Final = 1.2  # exponent of the amplitude over the frequency
_TEXTURES: Final = 4
_SHARDS: Final = 8
_SIDES: Final = ("width", "height")
_LINKED: Final = 10_000  # records of a shard that is repeated


def photo_like(folder: Path, records: int, sizes: Sequence[tuple[int, int]] = SIZES) -> None:
    """Write a pack of JPEGs with the sizes and the spectrum of photos, captioned by number."""
    textures = [_texture(max(sizes), seed) for seed in range(_TEXTURES)]

    def picture(number: int) -> bytes:
        rng = np.random.default_rng(number)
        size, whole = sizes[number % len(sizes)], textures[number % len(textures)]
        left, top = (int(rng.integers(0, side // 4)) for side in whole.size)
        box = (left, top, left + whole.width * 3 // 4, top + whole.height * 3 // 4)
        return _jpeg(whole.resize(size, Image.Resampling.BICUBIC, box))

    # No shard is empty, and every worker of every library has some.
    number = min(_SHARDS, records)
    parts = np.array_split(np.arange(records), number)
    shards = [_shard(folder, f"{at:05d}", part, picture) for at, part in enumerate(parts)]
    _manifest(folder, shards)


def linked(folder: Path, records: int) -> None:
    """Write a pack of so many small pictures, rounded up to whole shards, all of them one shard."""
    small = _jpeg(_texture((SMALL, SMALL), 0))
    first = _shard(folder, "00000000", np.arange(_LINKED), lambda number: small)
    names = [f"{number:08d}" for number in range(-(-records // _LINKED))]
    for name in names[1:]:
        for ending in ("tar", "parquet"):
            (folder / f"{name}.{ending}").symlink_to(f"{first.name}.{ending}")
    _manifest(folder, [first.model_copy(update={"name": name}) for name in names])


def smallest(folder: Path) -> int:
    """Return the shortest side of any picture that is trained on, pixels."""
    shards = PackManifest.load(folder / MANIFEST).of_split("train")
    parts = (part for one in shards for part in read_index(folder / one.index, _SIDES))
    return min(int(part[side].to_numpy().min()) for part in parts for side in _SIDES)


def _manifest(folder: Path, shards: list[ShardEntry]) -> None:
    manifest = PackManifest(shards=tuple(shards), settings={"made by": "cascade bench data"})
    write_bytes(manifest.model_dump_json().encode(), folder / MANIFEST)


def _shard(
    folder: Path, name: str, numbers: np.ndarray, picture: Callable[[int], bytes]
) -> ShardEntry:
    with ShardWriter(folder, name, "train", aspect=None) as writer:
        for number in numbers.tolist():
            writer.add(f"{number:09d}", _record(picture(number), number))
        piece, _ = writer.close()
    return ShardEntry(
        name=name,
        records=piece.records,
        size=(folder / piece.tar).stat().st_size,
        sha256=piece.sha256,
        index_sha256=file_digest(folder / piece.index),
    )


def _record(data: bytes, number: int) -> Record:
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
    note = Note(captions=(f"picture {number}",))
    # Nobody looks for duplicates.
    return Record(note=note, picture=data, ending="jpg", size=size, phash=0)


def _texture(size: tuple[int, int], seed: int) -> Image.Image:
    """Draw noise whose amplitude falls with the frequency, mostly grey, as that of photos does."""
    width, height = size
    rng = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = np.maximum(np.hypot(down, across), 1 / max(size)) ** -_FALL

    def plane() -> np.ndarray:
        drawn = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * fall, size[::-1])
        return np.asarray(drawn / drawn.std())

    grey = plane()
    pixels = np.stack([128 + 48 * grey + 12 * plane() for _ in range(3)], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
