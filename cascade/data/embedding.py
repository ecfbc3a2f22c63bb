"""Embedding of packs: each shard's captions into one file of a store (`cascade.data.texts`).

Several processes share the shards. What a process has in memory is one shard's captions and one
batch's embeddings: the number of tokens is known beforehand, so each embedding is written to its
place in the file when it is made. A process that is killed loses the shard it has in work.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from cascade.data.pack import MANIFEST, PackManifest, ShardEntry, read_index
from cascade.data.place import Place
from cascade.data.texts import PICTURES, TextShard, file_name, shard_name
from cascade.errors import UserError
from cascade.files import file_digest, remove_partials, replacing
from cascade.progress import amount, progress_bar, say
from cascade.text.embed import Embedder, Share, in_batches, require_room, token_lengths
from cascade.text.store import KEY_BYTES
from cascade.text.tokenizer import report_lost, sampled

_LOOKED_AT: Final = 8  # shards by whose captions the size is reckoned
_DTYPE: Final = torch.bfloat16

Put = Callable[[Tensor, Sequence[int]], None]
"""Writes an embedding, L D, to the places of the captions that it belongs to."""


class _Captions(NamedTuple):
    """Captions of a shard, with the prefix, and how many each record has."""

    texts: list[str]
    counts: list[int]


@dataclass(frozen=True)
class _Shard:
    """A shard to embed.

    Attributes:
        place: of its pack.
        entry: in the pack's manifest.
        file: that gets the embeddings.
        earlier: files that may have some of them: of other indexes of a shard of this name.
    """

    place: Place
    entry: ShardEntry
    file: Path
    earlier: tuple[Path, ...]

    def captions(self, prefix: str, whole: bool = True) -> _Captions:
        """Read the captions.

        Args:
            prefix: to give each.
            whole: read all; else the first records.
        """
        path = self.place.fetch(self.entry.index, self.entry.index_sha256)
        texts, counts = list[str](), list[int]()
        for part in read_index(path, ["captions"]):
            for captions in part["captions"].to_pylist():
                texts += [prefix + caption for caption in captions]
                counts.append(len(captions))
            if not whole:
                return _Captions(texts, counts)
        # What is written is named after the index: it must be no other.
        if len(counts) != self.entry.records or file_digest(path) != self.entry.index_sha256:
            raise UserError(
                f"{path} is not the index that {MANIFEST} tells of; copy the data again, or pack "
                "it again."
            )
        return _Captions(texts, counts)


@dataclass(frozen=True)
class PackEmbedding:
    """What a process has to embed of some packs.

    Attributes:
        embedder: by which.
        prefix: that every caption is given.
        shards: of its share, those that have no file.
        captions: of them, about.
    """

    embedder: Embedder
    prefix: str
    shards: tuple[_Shard, ...]
    captions: int

    @classmethod
    def plan(
        cls, store: Path, embedder: Embedder, packs: Sequence[Place], prefix: str, share: Share
    ) -> Self:
        """Find the shards of a share that a store lacks, tell their size, and check for room."""
        embedder.open_store(store)
        folder = store / PICTURES
        folder.mkdir(exist_ok=True)
        shards = _shards(folder, packs, prefix)
        mine = [shard for number, shard in enumerate(shards) if number in share]
        remove_partials(folder, {shard.file.name for shard in mine})
        lacking = tuple(shard for shard in mine if not shard.file.exists())
        every = max(1, len(lacking) // _LOOKED_AT)
        seen = [shard.captions(prefix, whole=False) for shard in lacking[::every]]
        records = sum(shard.entry.records for shard in lacking)
        shown = sum(len(captions.counts) for captions in seen)
        count = round(records * sum(len(captions.texts) for captions in seen) / max(1, shown))
        sample = sampled([text for captions in seen for text in captions.texts])
        report_lost(embedder.files.tokenizer, sample, embedder.text)
        lengths = token_lengths(embedder.files, embedder.conventions, sample)
        tokens = round(count * sum(lengths) / max(1, len(lengths)))
        size = tokens * embedder.conventions.width * _DTYPE.itemsize
        require_room(folder, size, count)
        say(
            f"{len(lacking)} shards to embed ({len(mine) - len(lacking)} are there): about {count} "
            f"captions, {tokens} tokens, {amount(size)}."
        )
        return cls(embedder, prefix, lacking, count)

    def work(self) -> None:
        """Embed the captions, shard by shard, and report the progress."""
        records = sum(shard.entry.records for shard in self.shards)
        done = captions = copied = 0
        with progress_bar() as bar:
            task = bar.add_task("captions", total=self.captions, details="")
            for shard in self.shards:
                job = _Job.of(shard, self.prefix, self.embedder)
                # Closed at once when it is interrupted, which removes half a file.
                with closing(_embed(job, shard.file, self.embedder)) as steps:
                    for count in steps:
                        bar.advance(task, count)
                done += shard.entry.records
                captions += len(job.keys)
                copied += job.copied
                bar.update(task, total=round(captions * records / done))
        if copied:
            say(f"{copied} of {captions} captions were embedded before, and copied.")


@dataclass(frozen=True)
class _Job:
    """A shard's captions, each text once, and where their embeddings come from.

    Attributes:
        keys: of the captions, in order.
        counts: captions of each record.
        places: of the captions that have a key.
        texts: key -> caption, of those to embed.
        earlier: key -> file and place there, of the others.
    """

    keys: list[bytes]
    counts: list[int]
    places: Mapping[bytes, list[int]]
    texts: Mapping[bytes, str]
    earlier: Mapping[bytes, tuple[TextShard, int]]

    @classmethod
    def of(cls, shard: _Shard, prefix: str, embedder: Embedder) -> Self:
        """Read a shard's captions, and look for them in earlier files."""
        texts, counts = shard.captions(prefix)
        keys = [embedder.conventions.key(text) for text in texts]
        places = defaultdict[bytes, list[int]](list)
        for place, key in enumerate(keys):
            places[key].append(place)
        earlier: dict[bytes, tuple[TextShard, int]] = {}
        for path in shard.earlier:
            file = TextShard.open(path)
            there = {key.tobytes(): place for place, key in enumerate(file.keys)}
            earlier |= {key: (file, there[key]) for key in places.keys() & there.keys()}
        lacking = {key: texts[at[0]] for key, at in places.items() if key not in earlier}
        return cls(keys, counts, places, lacking, earlier)

    @property
    def copied(self) -> int:
        """Captions whose embeddings are copied."""
        return sum(len(self.places[key]) for key in self.earlier)


def _shards(folder: Path, packs: Sequence[Place], prefix: str) -> list[_Shard]:
    """Return the shards of packs, each once."""
    there = defaultdict[str, list[Path]](list)
    for file in sorted(folder.glob("[!.]*.safetensors")):
        there[shard_name(file.name)].append(file)
    found: dict[str, _Shard] = {}
    for place in packs:
        for entry in PackManifest.load(place.fetch(MANIFEST, fresh=True)).shards:
            name = file_name(entry, prefix)
            found[name] = _Shard(place, entry, folder / name, tuple(there[entry.name]))
    return list(found.values())


def _embed(job: _Job, path: Path, embedder: Embedder) -> Generator[int]:
    """Write a shard's file; yield how many captions every step has."""
    made, texts = embedder.conventions, list(job.texts.values())
    fresh = token_lengths(embedder.files, made, texts)
    lengths = dict(zip(job.texts, fresh, strict=True))
    lengths |= {key: file.length(place) for key, (file, place) in job.earlier.items()}
    with replacing(path) as partial, _writing(partial, job, lengths, made.width) as put:
        for key, (file, place) in job.earlier.items():
            put(file.row(place), job.places[key])
        yield job.copied
        if not texts:
            return
        places = [job.places[key] for key in job.texts]
        for batch in in_batches(
            embedder.encoder, made.text, texts, fresh, embedder.batch_size, _DTYPE
        ):
            for number, row in batch:
                put(row, places[number])
            yield sum(len(places[number]) for number, _ in batch)


@contextmanager
def _writing(path: Path, job: _Job, lengths: Mapping[bytes, int], width: int) -> Iterator[Put]:
    """Write a file but for its embeddings, which are put where they belong as they come.

    `safetensors` itself writes tensors that are whole in memory: gigabytes.
    """
    each = np.array([lengths[key] for key in job.keys], np.int32)
    ends = np.cumsum(each, dtype=np.int64)
    row_bytes = width * _DTYPE.itemsize
    small = {
        "keys": ("U8", [len(each), KEY_BYTES], b"".join(job.keys)),
        "lengths": ("I32", [len(each)], each.astype("<i4").tobytes()),
        "counts": ("I32", [len(job.counts)], np.array(job.counts, "<i4").tobytes()),
    }
    parts = [(name, kind, shape, len(data)) for name, (kind, shape, data) in small.items()]
    parts.append(("rows", "BF16", [int(each.sum()), width], int(each.sum()) * row_bytes))
    header, at = dict[str, object](), 0
    for name, kind, shape, size in parts:
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that tensors begin at whole words, as the format asks
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in small.values():
            file.write(data)
        begin = file.tell()

        def put(row: Tensor, places: Sequence[int]) -> None:
            data = row.contiguous().view(torch.uint8).numpy().data
            for place in places:
                if len(row) != each[place]:
                    raise ValueError(f"An embedding has {len(row)} tokens, not {each[place]}.")
                file.seek(begin + int(ends[place] - each[place]) * row_bytes)
                file.write(data)

        yield put
        file.flush()
        os.fsync(file.fileno())
