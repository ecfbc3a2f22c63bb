"""Other projects' ways to feed a training from a pack's tars, as their manuals show them.

Both decode with Pillow and make batches with torch's `DataLoader`.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from cascade.progress import silence
from cascade_bench.data_feeds import AHEAD, SEED, Asked, Feed, Named, Squared
from cascade_bench.problem import CannotError, missing

_BUFFER: Final = 1000  # pictures that webdataset shuffles
_ENDLESS: Final = 2**40
_PICTURES: Final = ("jpg", "jpeg", "png", "webp")

_Row = tuple[Tensor, tuple[str, str]]


def webdataset(asked: Asked, reduced: bool = False) -> Feed:
    """webdataset's pipeline.

    Args:
        reduced: decode a JPEG no larger than it takes, as ours does, which its decoder does not.
    """  # noqa: D403
    try:
        import webdataset as wds
    except ImportError as error:
        raise missing("webdataset", error) from None
    if len(asked.shards) < asked.workers:
        raise CannotError(f"webdataset needs a shard for each of {asked.workers} workers")
    shown = Squared(asked.size, asked.kernel)
    decoder = partial(_reduced, side=2 * asked.size) if reduced else "pil"

    tars = wds.WebDataset(asked.tars, shardshuffle=100, seed=SEED).repeat()
    decoded = tars.shuffle(_BUFFER, seed=SEED).decode(decoder)
    told = decoded.to_tuple(";".join(_PICTURES), "__url__", "__key__")
    rows = told.map(partial(_of_tuple, shown=shown))
    return _feed(asked, rows, rows)


def _reduced(key: str, data: bytes, side: int) -> Image.Image | None:
    """Decode a picture at the least size of its format's that is enough; None for other files."""
    if key.rpartition(".")[2] not in _PICTURES:
        return None
    image = Image.open(io.BytesIO(data))
    image.draft(None, (side, side))
    return image.convert("RGB")


def _of_tuple(row: tuple[Image.Image, str, str], shown: Squared) -> _Row:
    image, url, key = row
    return shown(image), (Path(url).stem, key)


def datasets(asked: Asked) -> Feed:
    """datasets' table, copied from the tars, and `DataLoader`'s shuffle of it."""  # noqa: D403
    with silence("datasets"):
        try:
            from datasets import Image as Picture
            from datasets import disable_progress_bars, load_dataset
            from datasets.exceptions import DatasetsError
        except ImportError as error:
            raise missing("datasets", error) from None
    disable_progress_bars()
    files, cache = {"train": asked.tars}, str(asked.scratch / "datasets")
    try:
        table = load_dataset("webdataset", data_files=files, split="train", cache_dir=cache)
    except DatasetsError as error:
        raise CannotError(f"datasets cannot read the tars: {error}") from None
    columns = [name for name in _PICTURES if name in table.column_names]
    if len(columns) != 1:
        raise CannotError(f"datasets has pictures in {len(columns)} columns; it takes one")
    table = table.cast_column(columns[0], Picture())
    shown = Squared(asked.size, asked.kernel)
    table = table.with_transform(_Rows(columns[0], shown))
    sampler = RandomSampler(
        table, num_samples=_ENDLESS, generator=torch.Generator().manual_seed(SEED)
    )
    rows = (table[index]["row"] for index in range(len(table)))
    return _feed(asked, table, rows, sampler, _from_columns)


@dataclass(frozen=True)
class _Rows:
    """Makes rows of some of the table's."""

    column: str
    shown: Squared

    def __call__(self, table: dict[str, list[Any]]) -> dict[str, list[_Row]]:
        shards = (Path(url).stem for url in table["__url__"])
        names = zip(shards, table["__key__"], strict=True)
        images = map(self.shown, table[self.column])
        return {"row": list(zip(images, names, strict=True))}


def _feed(
    asked: Asked,
    data: Any,
    rows: Iterable[_Row],
    sampler: RandomSampler | None = None,
    collate: Callable[[list[Any]], Tensor] | None = None,
) -> Feed:
    """Return a loader's batches, each stacked of rows."""
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=asked.batch,
        sampler=sampler,
        num_workers=asked.workers,
        prefetch_factor=AHEAD,
        collate_fn=collate or _stacked,
    )

    def named() -> Named:
        found = list(islice(rows, asked.batch))
        return Named(_stacked(found), [name for _, name in found])

    return Feed(_endless(loader), named)


def _endless(loader: "DataLoader[Any]") -> Iterator[Tensor]:
    yield from loader


def _stacked(rows: list[_Row]) -> Tensor:
    return torch.stack([image for image, _ in rows])


def _from_columns(rows: list[dict[str, _Row]]) -> Tensor:
    return _stacked([row["row"] for row in rows])
