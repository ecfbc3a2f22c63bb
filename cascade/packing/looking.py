"""What a data set holds, told from its indexes alone.

Memory does not grow with the number of pictures: indexes are read in parts, one after another.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from cascade.data.array import IMAGES, CaptionedArray
from cascade.data.pack import ASPECTS, MANIFEST, read_index
from cascade.data.place import is_address
from cascade.errors import UserError
from cascade.files import read_json
from cascade.packing.fetching import fetched, read_manifest
from cascade.packing.figures import Bins, Spread, Tally
from cascade.progress import progress_bar

_CARD: Final = "dataset.json"
_READ: Final = ("width", "height", "captions", "licence", "source")
_TOP: Final = 10  # names that are told
_PART: Final = 2**16  # captions of an array at once
# An address gives its host, and a path its folder.
_ADDRESS: Final = r"(?s)^[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*).*$"
_PATH: Final = r"(?s)/?[^/]*$"


@dataclass(frozen=True)
class DataDescription:
    """The contents of a data set.

    Attributes:
        place: where it lies.
        id: of a pack's content; empty of an array.
        pictures: in all its shards.
        captions: of all pictures.
        disk: bytes of tars, or of the array.
        splits: pictures, shards and bytes of each split.
        spreads: min, quantiles, max and mean of sides in pixels, of captions of a picture, of words
            of a caption, and of every number that people brought.
        histograms: counts by bin: shorter sides, aspect ratios, captions, their words.
        tops: what occurs most: sizes, licences, sources (hosts of addresses, folders of paths).
        left_out: records that were not packed, by the reason.
    """

    place: str
    id: str
    pictures: int
    captions: int
    disk: int
    splits: dict[str, dict[str, int]]
    spreads: dict[str, dict[str, float]]
    histograms: dict[str, dict[str, int]]
    tops: dict[str, dict[str, int]]
    left_out: dict[str, int]

    def json(self) -> str:
        """Return the same for programs."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def describe_data(place: str) -> DataDescription:
    """Read what a data set holds: a pack, near or far, or an array data set's folder.

    Raises:
        UserError: there is none, or an index is damaged.
    """
    if is_array(place):
        return _of_array(Path(place))
    manifest = read_manifest(place)
    figures = _Figures(manifest.numbers)
    # Where the description goes nothing else may: a program may read it.
    with progress_bar(Console(stderr=True), shown=len(manifest.shards) > 1) as bar:
        task = bar.add_task("Indexes", total=len(manifest.shards), details="")
        for shard in manifest.shards:
            with fetched(place, shard.index) as path:
                for part in read_index(path, [*_READ, *manifest.numbers]):
                    figures.add(part)
            bar.advance(task)
    splits: dict[str, dict[str, int]] = {}
    for shard in manifest.shards:
        split = splits.setdefault(shard.split, {"pictures": 0, "shards": 0, "bytes": 0})
        split["pictures"] += shard.records
        split["shards"] += 1
        split["bytes"] += shard.size
    return figures.described(place, manifest.id, splits, manifest.left_out)


def is_array(place: str) -> bool:
    """Report whether a place holds an array of pictures; what is neither that nor a pack is told.

    Raises:
        UserError: it holds no data set.
    """
    if is_address(place):
        return False
    folder = Path(place)
    if (folder / MANIFEST).is_file():
        return False
    if (folder / IMAGES).is_file():
        return True
    raise UserError(
        f"{folder} is no data set: it has neither {MANIFEST} nor {IMAGES}; give the folder of a "
        "pack, or make one with 'cascade data pack'."
    )


def _of_array(folder: Path) -> DataDescription:
    import pyarrow as pa

    data = CaptionedArray.open(folder)
    card = folder / _CARD
    licence = read_json(card).get("licence", "") if card.is_file() else ""
    width, height = data.size(0)
    figures = _Figures(())
    for begin in range(0, len(data.texts), _PART):
        captions = data.texts[begin : begin + _PART]
        count = len(captions)
        columns = {
            "width": pa.array(np.full(count, width)),
            "height": pa.array(np.full(count, height)),
            "captions": pa.array(map(list, captions), pa.list_(pa.string())),
            "licence": pa.array([str(licence)] * count),
            "source": pa.array([""] * count),
        }
        figures.add(pa.RecordBatch.from_pydict(columns))
    size = (folder / IMAGES).stat().st_size
    splits = {"all": {"pictures": len(data.texts), "shards": 1, "bytes": size}}
    return figures.described(str(folder), "", splits, {})


class _Figures:
    """What is counted of the records."""

    def __init__(self, numbers: Sequence[str]) -> None:
        self._numbers = {name: Spread() for name in numbers}
        self._spreads = {
            "width": Spread(),
            "height": Spread(),
            "captions": Spread(),
            "words": Spread(),
        }
        self._histograms = {
            "side": Bins.whole(64, 128, 256, 512, 768, 1024, 2048, 4096),
            "aspect": Bins.nearest(ASPECTS),
            "captions": Bins.whole(1, 2, 3, 4, 5, 10),
            "words": Bins.whole(1, 5, 10, 20, 40, 80, 160),
        }
        self._tops = {name: Tally() for name in ("size", "licence", "source")}

    def add(self, part: Any) -> None:
        """Add records, a `pyarrow.RecordBatch` of `_READ` and the numbers."""
        import pyarrow.compute as pc

        width, height = (part.column(name).to_numpy() for name in ("width", "height"))
        captions = part.column("captions")
        counts = pc.list_value_length(captions).to_numpy(zero_copy_only=False)
        # `\s` of RE2 knows ASCII's blanks alone, as do most captions.
        words = pc.count_substring_regex(captions.flatten(), r"\S+").to_numpy()
        for name, values in (
            ("width", width),
            ("height", height),
            ("captions", counts),
            ("words", words),
            ("side", np.minimum(width, height)),
            ("aspect", width / np.maximum(height, 1)),
        ):
            for figures in (self._spreads, self._histograms):
                if name in figures:
                    figures[name].add(values)
        for name, spread in self._numbers.items():
            spread.add(part.column(name).to_numpy(zero_copy_only=False))
        self._tops["size"].add(_sizes(width, height))
        self._tops["licence"].add(_counted(part.column("licence")))
        self._tops["source"].add(_counted(_origins(part.column("source"))))

    def described(
        self,
        place: str,
        name: str,
        splits: dict[str, dict[str, int]],
        left_out: dict[str, int],
    ) -> DataDescription:
        spreads = {name: spread.told() for name, spread in self._spreads.items()}
        numbers = {name: spread.told() for name, spread in self._numbers.items()}
        return DataDescription(
            place=place,
            id=name,
            pictures=self._spreads["width"].count,
            captions=self._spreads["words"].count,
            disk=sum(split["bytes"] for split in splits.values()),
            splits=splits,
            spreads=spreads | numbers,
            histograms={name: bins.told() for name, bins in self._histograms.items()},
            tops={name: tally.told(_TOP) for name, tally in self._tops.items()},
            left_out=dict(left_out),
        )


def _sizes(width: np.ndarray, height: np.ndarray) -> Iterator[tuple[str, int]]:
    """Count sizes such as 640x480."""
    joined = width.astype(np.int64) << 32 | height
    for value, count in zip(*np.unique(joined, return_counts=True), strict=True):
        yield f"{value >> 32}x{value & 0xFFFFFFFF}", int(count)


def _origins(sources: Any) -> Any:
    """Return the hosts of addresses and the folders of paths."""
    import pyarrow.compute as pc

    hosts = pc.replace_substring_regex(sources, _ADDRESS, r"\1")
    folders = pc.replace_substring_regex(sources, _PATH, "")
    return pc.if_else(pc.match_substring_regex(sources, _ADDRESS), hosts, folders)


def _counted(names: Any) -> Iterator[tuple[str, int]]:
    counts = names.value_counts()
    values = (name or "" for name in counts.field("values").to_pylist())
    yield from zip(values, counts.field("counts").to_pylist(), strict=True)
