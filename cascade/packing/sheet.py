"""A contact sheet: pictures taken evenly from a data set, each above its caption."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cascade.data.array import CaptionedArray
from cascade.data.decoding import Encoded
from cascade.data.grid import image_grid
from cascade.data.images import read_image
from cascade.data.order import mixed
from cascade.data.pack import read_index
from cascade.data.place import Place
from cascade.errors import UserError
from cascade.packing.fetching import fetched, read_manifest
from cascade.packing.looking import is_array

_CELL: Final = 160  # pixels
_LETTERS: Final = 11  # pixels
_MOST: Final = 140  # characters of a caption
_WIDE: Final = 1.6  # of the sheet's width by its height, roughly

_Seen = tuple[Image.Image | None, str]


def contact_sheet(place: str, count: int, seed: int) -> Image.Image:
    """Draw pictures with a caption of each; an empty place where one cannot be decoded.

    Of a pack that is far only these pictures' bytes are read, and their shards' indexes.

    Args:
        place: of a pack, near or far, or an array data set's folder.
        count: of pictures, if there are so many.
        seed: another one takes other pictures.
    """
    seen = list(
        _of_array(Path(place), count, seed) if is_array(place) else _of_pack(place, count, seed)
    )
    wide = math.ceil(math.sqrt(len(seen) * _WIDE))
    # About so many columns, and the last row as full as it may be.
    columns = min(range(max(1, wide - 2), wide + 1), key=lambda columns: -len(seen) % columns)
    rows = [seen[begin : begin + columns] for begin in range(0, len(seen), columns)]
    return image_grid(
        [[picture for picture, _ in row] for row in rows],
        captions=[[_short(caption) for _, caption in row] for row in rows],
        cell=_CELL,
        text_size=_LETTERS,
    )


def evenly(total: int, count: int, seed: int) -> np.ndarray:
    """Choose a number by chance from each of `count` equal parts of those below `total`, int64."""
    count = min(total, count)
    bounds = np.array([total * part // count for part in range(count + 1)])
    sizes = np.diff(bounds)
    return bounds[:-1] + (mixed(seed, np.arange(count)) % sizes.astype(np.uint64)).astype(np.int64)


def _of_array(folder: Path, count: int, seed: int) -> Iterator[_Seen]:
    data = CaptionedArray.open(folder)
    for index in evenly(len(data.texts), count, seed).tolist():
        yield data.picture(index), data.captions(index)[0]


def _of_pack(address: str, count: int, seed: int) -> Iterator[_Seen]:
    shards = read_manifest(address).shards
    starts = np.cumsum([0, *(shard.records for shard in shards)])
    chosen = evenly(int(starts[-1]), count, seed)
    place = Place(address, Path())
    for shard, start, end in zip(shards, starts[:-1], starts[1:], strict=True):
        rows = chosen[(chosen >= start) & (chosen < end)] - start
        if not len(rows):
            continue
        with fetched(address, shard.index) as path:
            found = list(_rows(path, rows))
        for key, offset, size, caption in found:
            data = place.read(shard.tar, offset, size)
            try:
                picture = read_image(Encoded(data, f"{shard.name}/{key}"), _CELL)
            except UserError:
                yield None, f"{shard.name}/{key} cannot be decoded"
            else:
                yield picture, caption


def _rows(index: Path, rows: Sequence[int] | np.ndarray) -> Iterator[tuple[str, int, int, str]]:
    """Yield key, offset, size and first caption of some rows of an index."""
    at = 0
    for part in read_index(index, ["key", "offset", "size", "captions"]):
        for row in rows:
            if at <= row < at + len(part):
                key, offset, size, captions = (
                    part.column(column)[int(row) - at].as_py() for column in range(4)
                )
                yield key, offset, size, captions[0]
        at += len(part)


def _short(caption: str) -> str:
    return caption if len(caption) <= _MOST else f"{caption[:_MOST].rstrip()}..."
