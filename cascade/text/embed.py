"""Filling a store: captions that it lacks are embedded in batches and written shard by shard.

Several processes can fill one store: each takes the captions whose keys fall to it and writes
shards of its own. A process that is killed loses the shard it has in work; started again, it goes
on with the captions that are not there.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

import torch
from safetensors.torch import save
from torch import Tensor

from cascade.config.encoder import EncoderMode
from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.launch import Launch
from cascade.progress import progress_bar, say
from cascade.text.cleaning import clean
from cascade.text.files import EncoderFiles
from cascade.text.lost import SAMPLED, tell_lost
from cascade.text.modes import skeleton
from cascade.text.store import (
    NOTE,
    Conventions,
    EmbeddingStore,
    read_note,
    write_note,
)
from cascade.text.t5 import TextEncoder

_WINDOW: Final = 64  # batches whose captions are sorted by length, to pad little

OnProgress = Callable[[int], None]
"""Called with the number of captions embedded."""


@dataclass(frozen=True)
class Share:
    """A process's share of the captions, by their keys: number `part` of `parts`, from 0."""

    part: int = 0
    parts: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a share as people write it, `1/4` to `4/4`.

        Raises:
            UserError: it is not written so.
        """
        part, _, parts = text.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise UserError(f"'{text}' is no share; write I/N with I from 1 to N, such as 1/4.")
        return cls(int(part) - 1, int(parts))

    @classmethod
    def of_process(cls) -> Self:
        """The share of a process that `torchrun` has started, or everything."""
        launch = Launch.read()
        return cls(launch.rank, launch.world)

    def __contains__(self, key: bytes) -> bool:
        """Whether a key falls into the share."""
        return int.from_bytes(key) % self.parts == self.part


@dataclass(frozen=True)
class Work:
    """What is to be done for a store.

    Attributes:
        captions: key -> caption, those that the store lacks.
        stored: how many it has already.
        tokens: rows that will be written, estimated where there are many captions.
        size: bytes that will be written.
    """

    captions: dict[bytes, str]
    stored: int
    tokens: int
    size: int


def fill(
    folder: Path,
    encoder: Path,
    captions: Iterable[str],
    *,
    text: TextConfig,
    mode: EncoderMode,
    device: str,
    batch_size: int,
    share: Share,
    shard_bytes: int,
) -> None:
    """Add captions to a store, which is made where there is none, and tell how far it is.

    Args:
        folder: of the store.
        encoder: folder of the encoder.
        captions: that the store shall hold.
        text: how they are read.
        mode: how the encoder's weights are held.
        device: where it runs.
        batch_size: captions embedded at once.
        share: of the captions that this process takes.
        shard_bytes: size at which a shard is written.

    Raises:
        UserError: as `open_or_make`, `plan` and `TextEncoder.load`.
    """
    texts = list(captions)
    files = EncoderFiles.open(encoder)
    skeleton(files)
    conventions = Conventions.of(files, mode == "int8", text)
    store = open_or_make(folder, files, conventions)
    work = plan(store, files, texts, share)
    say(
        f"{len(work.captions)} captions to embed ({work.stored} are there): about {work.tokens} "
        f"tokens, {work.size / 2**20:.1f} MiB."
    )
    if not work.captions:
        return
    loaded = TextEncoder.hold(files, mode, device)
    say(f"The text encoder is held in {loaded.mode} on {device}.")
    with progress_bar() as bar:
        task = bar.add_task("captions", total=len(work.captions), details="")
        embed_captions(
            loaded,
            store,
            work,
            batch_size,
            shard_bytes,
            lambda done: bar.update(task, completed=done),
        )


def open_or_make(folder: Path, files: EncoderFiles, conventions: Conventions) -> EmbeddingStore:
    """Open a store to add to, or make an empty one.

    Raises:
        UserError: the folder holds a store with other conventions, or something else.
    """
    if (folder / NOTE).is_file():
        held, _ = read_note(folder)
        if held != conventions:
            wanted = asdict(conventions)
            names = [name for name, value in asdict(held).items() if value != wanted[name]]
            raise UserError(
                f"The store {folder} was made with another {', '.join(names)}; give the same "
                "encoder and conventions, or another folder."
            )
        return EmbeddingStore.open(folder)
    if folder.exists() and not (folder.is_dir() and _is_vacant(folder)):
        raise UserError(f"{folder} is no store of embeddings and not empty; give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(files.vocabulary.read_bytes(), folder / "spiece.model")
    write_note(folder, conventions, str(files.folder.absolute()))
    return EmbeddingStore.open(folder)


def plan(store: EmbeddingStore, files: EncoderFiles, captions: Iterable[str], share: Share) -> Work:
    """Find out what a store lacks, and how much it will grow.

    Args:
        store: to be added to.
        files: of the encoder, for its tokenizer.
        captions: that the store shall hold; the empty one is always added.
        share: of the captions that this process takes.

    Raises:
        UserError: there is not enough room on the disk.
    """
    held = store.conventions
    keyed = {held.key(caption): caption for caption in ("", *captions)}
    mine = {key: text for key, text in keyed.items() if key in share}
    lacking = {key: text for key, text in mine.items() if store.index.find(key) is None}
    texts = list(lacking.values())
    sample = texts[:: max(1, len(texts) // SAMPLED)]
    tell_lost(files.tokenizer, sample, held.text)
    # `embed` cleans; lengths of raw captions would be too long where cleaning deletes much.
    lengths = _lengths(files, held, sample)
    tokens = round(sum(lengths) * len(texts) / max(1, len(sample)))
    size = tokens * held.width * torch.bfloat16.itemsize
    free = shutil.disk_usage(store.folder).free
    if free < size:
        raise UserError(
            f"The embeddings of {len(texts)} captions take about {size / 2**30:.1f} GiB but "
            f"{free / 2**30:.1f} GiB are free in {store.folder}; free some, or give another folder."
        )
    return Work(lacking, len(mine) - len(lacking), tokens, size)


def embed_captions(
    encoder: TextEncoder,
    store: EmbeddingStore,
    work: Work,
    batch_size: int,
    shard_bytes: int,
    on_progress: OnProgress,
) -> None:
    """Embed what a store lacks.

    Args:
        encoder: the one whose conventions the store has.
        store: to be added to; open it again to read what was added.
        work: from `plan`.
        batch_size: captions embedded at once.
        shard_bytes: size at which a shard is written.
        on_progress: called after every batch.
    """
    held = store.conventions
    done, keys, rows, size = 0, list[bytes](), list[Tensor](), 0
    try:
        for batch in _batches(encoder.files, held, work, batch_size):
            answer = encoder.embed([work.captions[key] for key in batch], held.text)
            for key, row, mask in zip(batch, answer.embedding, answer.mask, strict=True):
                keys.append(key)
                rows.append(row[mask].to("cpu", torch.bfloat16))
                size += rows[-1].nbytes
            if size >= shard_bytes:
                _write_shard(store.folder, keys, rows)
                keys, rows, size = [], [], 0
            done += len(batch)
            on_progress(done)
    finally:  # interrupted, a process keeps what it has
        if keys:
            _write_shard(store.folder, keys, rows)


def _is_vacant(folder: Path) -> bool:
    """Whether a folder holds nothing but what another process is about to make a store of."""
    return all(p.name == "spiece.model" or p.suffix == ".partial" for p in folder.iterdir())


def _lengths(files: EncoderFiles, held: Conventions, captions: Sequence[str]) -> list[int]:
    if not held.masked:
        return [held.max_length] * len(captions)
    return [
        len(files.tokenizer.encode(clean(caption, held.cleaning), held.max_length))
        for caption in captions
    ]


def _batches(
    files: EncoderFiles, held: Conventions, work: Work, batch_size: int
) -> Iterator[list[bytes]]:
    """Keys of captions that are about equally long."""
    keys = list(work.captions)
    for first in range(0, len(keys), window := batch_size * _WINDOW):
        some = keys[first : first + window]
        lengths = _lengths(files, held, [work.captions[key] for key in some])
        order = sorted(range(len(some)), key=lengths.__getitem__)
        for start in range(0, len(some), batch_size):
            yield [some[index] for index in order[start : start + batch_size]]


def _write_shard(folder: Path, keys: Sequence[bytes], rows: Sequence[Tensor]) -> None:
    """Write a shard; named after its captions, so that no two processes write to one file."""
    tensors = {
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1),
        "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int32),
        "rows": torch.cat(list(rows)),
    }
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
    write_bytes(save(tensors), folder / f"{name}.safetensors")
