"""Our stream of a pack, as `cascade train` reads it."""

from itertools import islice

from cascade.config.data import RowConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.pack import read_index
from cascade.data.packed import Packed
from cascade.data.place import Place
from cascade.data.source import Source
from cascade.data.stream import RankSlice, Stream
from cascade_bench.data_feeds import SEED, Asked, Feed, Named
from cascade_bench.few_steps import TINY


def ours(asked: Asked) -> Feed:
    """Our stream: whole centred squares, none of them mirrored."""
    data = Packed.open(Place(str(asked.folder), asked.scratch))
    stage = TINY.model_copy(update={"size": asked.size, "resize": asked.kernel})
    source = Source(data, weight=1.0, size=(asked.size, asked.size))
    samples = CaptionedSamples((source,), stage, SEED, RowConfig(flip=False))
    stream = Stream(samples, workers=asked.workers)
    batches = stream.batches(asked.start, RankSlice(asked.batch))

    def named() -> Named:
        positions = range(asked.start, asked.start + asked.batch)
        names = [_name(data, choice.index) for choice in samples.decide(positions)]
        return Named(samples.rows(positions).images, names)

    def decide(position: int) -> object:
        return samples.decide([position])

    return Feed((batch.images for batch in batches), named, decide)


def _name(data: Packed, index: int) -> tuple[str, str]:
    shard, number = data.at(index)
    parts = read_index(data.place.fetch(shard.index), ["key"])
    keys = (key for part in parts for key in part["key"].to_pylist())
    return shard.name, next(islice(keys, number, None))
