"""Opening of what `[data]` names: packs near and far, arrays, or several of them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cascade.config.data import DataConfig, DataSetConfig, RowConfig
from cascade.config.stage import StageConfig
from cascade.data.array import CaptionedArray
from cascade.data.captioned import CaptionedSamples
from cascade.data.dataset import Dataset
from cascade.data.pack import MANIFEST, PackManifest, Split
from cascade.data.packed import Packed
from cascade.data.place import Place
from cascade.data.source import Source
from cascade.data.texts import PICTURES, PictureTexts
from cascade.errors import UserError
from cascade.files import user_cache


def open_samples(
    data: DataConfig, stage: StageConfig, seed: int, batch_size: int
) -> CaptionedSamples:
    """Open all sets of pictures, as the rows of a stage."""
    if data.shapes == "aspect" and stage.low_res is not None:
        raise UserError(
            f"Stage '{stage.name}' is trained on what it enlarges, which is square; set "
            'data.shapes = "square".'
        )
    sources = tuple(source for one in data.all_sets for source in open_sources(data, one, stage))
    alike = data.shapes == "square"
    return CaptionedSamples(sources, stage, seed, data, 1 if alike else batch_size)


def with_texts(samples: CaptionedSamples, store: Place) -> CaptionedSamples:
    """Let rows bring their captions' embeddings, if a store has them beside the pictures.

    Raises:
        UserError: it has those of some shards and lacks others.
    """
    packs = [source.data for source in samples.sources if isinstance(source.data, Packed)]
    if len(packs) < len(samples.sources) or not store.inside(PICTURES).names():
        return samples
    sources = []
    for source, pack in zip(samples.sources, packs, strict=True):
        texts = PictureTexts.open(store, pack.place.address, source.prefix)
        texts.require(pack.shards)
        sources.append(replace(source, texts=texts))
    return replace(samples, sources=tuple(sources))


def data_identity(samples: CaptionedSamples) -> dict[str, object]:
    """Return everything of the data that weights depend on; pictures by content, not by place."""
    values = samples.config.model_dump(mode="json", include=set(RowConfig.model_fields))
    sets = [
        {"content": one.data.digest(), "weight": one.weight, "prefix": one.prefix, "size": one.size}
        for one in samples.sources
    ]
    return values | {"sets": json.loads(json.dumps(sets))}


def open_dataset(place: Place, split: Split = "train") -> Packed | CaptionedArray:
    """Open a pack's split, or an array, all of which is for training."""
    if _is_pack(place):
        return Packed.open(place, split)
    return CaptionedArray.open(Path(place.address))


def held_out_split(place: Place) -> Split:
    """Return the split of pictures that a run is to be scored on: all, where none are held out."""
    if not _is_pack(place):
        return "train"
    manifest = PackManifest.load(place.fetch(MANIFEST, fresh=True))
    return "validation" if manifest.of_split("validation") else "train"


def _is_pack(place: Place) -> bool:
    return place.is_far or (Path(place.address) / MANIFEST).is_file()


def place_of(data: DataConfig, address: str) -> Place:
    """Return a place whose files are kept as the settings say."""
    return Place(address, data.cache or user_cache("data"), round(data.cache_gib * 2**30))


def open_sources(
    data: DataConfig, one: DataSetConfig, stage: StageConfig, split: Split = "train"
) -> Iterator[Source]:
    """Open one of the sets; one sorted by aspect ratio is a source for each of them."""
    found = open_dataset(place_of(data, one.folder), split)
    total = int(found.counts.sum())
    square = stage.size, stage.size
    if isinstance(found, CaptionedArray):
        side = found.images.shape[-1]
        if side < stage.size:
            raise UserError(
                f"The pictures of {one.folder} are {side} pixels wide but stage '{stage.name}' "
                f"makes {stage.size}; prepare the data at the stage's size."
            )
        yield Source(found, one.weight or total, square, one.prefix)
    elif data.shapes == "square":
        yield Source(found, one.weight or total, square, one.prefix)
    else:
        for aspect in found.aspects():
            part: Dataset = found.of_aspect(aspect)
            share = int(part.counts.sum()) / total
            weight = (one.weight or total) * share
            yield Source(part, weight, stage.shape(aspect), one.prefix)
