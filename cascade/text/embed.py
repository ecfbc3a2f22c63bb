"""Filling of a store: captions that it lacks are embedded in batches and written shard by shard.

Several processes can fill one store: each takes the captions whose keys fall to it and writes
shards of its own. A process that is killed loses the shard it has in work; started again, it goes
on with the captions that are not there.
"""

import hashlib
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
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
from cascade.text.encoder import TextEncoder, meta_model
from cascade.text.files import EncoderFiles
from cascade.text.store import NOTE, Conventions, EmbeddingStore, read_note, write_note
from cascade.text.tokenizer import report_lost, sampled

_SHARD: Final = 2**28  # bytes
_WINDOW: Final = 64  # batches whose captions are sorted by length, to pad little


@dataclass(frozen=True)
class Share:
    """A process's share of the captions, by their keys: number `part` of `parts`, from 0."""

    part: int = 0
    parts: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a share as people write it, `1/4` to `4/4`."""
        part, _, parts = text.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise UserError(f"'{text}' is no share; write I/N with I from 1 to N, such as 1/4.")
        return cls(int(part) - 1, int(parts))

    @classmethod
    def of_process(cls) -> Self:
        """Return the share of a process that `torchrun` has started, or everything."""
        launch = Launch.read()
        return cls(launch.rank, launch.world_size)

    def __contains__(self, number: int) -> bool:
        """Report whether a number falls into the share: a key's, or a place in a list."""
        return number % self.parts == self.part


@dataclass(frozen=True)
class Embedder:
    """What captions are embedded by: an encoder that is loaded when the first of them is.

    Attributes:
        files: of the encoder.
        text: how it reads captions.
        mode: how it is held.
        device: where it runs.
        batch_size: captions embedded at once.
    """

    files: EncoderFiles
    text: TextConfig
    mode: EncoderMode
    device: str
    batch_size: int

    @classmethod
    def open(
        cls, encoder: Path, text: TextConfig, mode: EncoderMode, device: str, batch_size: int
    ) -> Self:
        """Open an encoder's folder, and check that its files fit each other."""
        files = EncoderFiles.open(encoder)
        meta_model(files)
        return cls(files, text, mode, device, batch_size)

    @cached_property
    def conventions(self) -> Conventions:
        """What its embeddings are made with."""
        return Conventions.of(self.files, self.mode == "int8", self.text)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The encoder, loaded."""
        loaded = TextEncoder.load(self.files, self.mode, self.device)
        say(f"The text encoder is held in {loaded.mode} on {self.device}.")
        return loaded

    def open_store(self, folder: Path) -> EmbeddingStore:
        """Open a store of its embeddings, made where there is none."""
        return _open_or_make(folder, self.files, self.conventions)


@dataclass(frozen=True)
class _Work:
    """Captions to be added to a store.

    Attributes:
        captions: key -> caption, those that the store lacks.
        dtype: that they are stored in.
    """

    captions: dict[bytes, str]
    dtype: torch.dtype


def fill(
    folder: Path, embedder: Embedder, captions: Iterable[str], *, share: Share, shard_bytes: int
) -> None:
    """Add captions to a store, which is made where there is none, and report the progress.

    Args:
        shard_bytes: size at which a shard is written.
    """
    store = embedder.open_store(folder)
    work = _plan(store, embedder.files, captions, share, torch.bfloat16)
    if not work.captions:
        return
    report_lost(embedder.files.tokenizer, sampled(list(work.captions.values())), embedder.text)
    _fill(embedder.encoder, store, work, embedder.batch_size, shard_bytes)


def keep(
    folder: Path, encoder: TextEncoder, captions: Iterable[str], text: TextConfig
) -> EmbeddingStore:
    """Keep what a loaded encoder makes of captions, to the last bit and whatever else is embedded.

    So each caption is embedded alone; `fill` is quicker, and halves the store.
    """
    conventions = Conventions.of(encoder.files, encoder.mode == "int8", text)
    store = _open_or_make(folder, encoder.files, conventions)
    work = _plan(store, encoder.files, list(captions), Share(), torch.float32)
    if work.captions:
        _fill(encoder, store, work, batch_size=1, shard_bytes=_SHARD)
    return EmbeddingStore.open(folder)


def _fill(
    encoder: TextEncoder, store: EmbeddingStore, work: _Work, batch_size: int, shard_bytes: int
) -> None:
    with progress_bar() as bar:
        task = bar.add_task("captions", total=len(work.captions), details="")
        # Closed at once when it is interrupted, which writes what it has.
        with closing(_embed(encoder, store, work, batch_size, shard_bytes)) as batches:
            for count in batches:
                bar.advance(task, count)


def _open_or_make(folder: Path, files: EncoderFiles, conventions: Conventions) -> EmbeddingStore:
    if (folder / NOTE).is_file():
        stored, _ = read_note(folder)
        if stored != conventions:
            wanted = asdict(conventions)
            names = [name for name, value in asdict(stored).items() if value != wanted[name]]
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


def _plan(
    store: EmbeddingStore,
    files: EncoderFiles,
    captions: Iterable[str],
    share: Share,
    dtype: torch.dtype,
) -> _Work:
    """Find the captions of a share that a store lacks, and check that the disk has room."""
    made = store.conventions
    keyed = {made.key(caption): caption for caption in ("", *captions)}
    mine = {key: text for key, text in keyed.items() if int.from_bytes(key) in share}
    lacking = {key: text for key, text in mine.items() if store.index.find(key) is None}
    texts = list(lacking.values())
    sample = sampled(texts)
    tokens = round(sum(token_lengths(files, made, sample)) * len(texts) / max(1, len(sample)))
    size = tokens * made.width * dtype.itemsize
    require_room(store.folder, size, len(texts))
    stored = len(mine) - len(lacking)
    say(
        f"{len(lacking)} captions to embed ({stored} are there): about {tokens} tokens, "
        f"{size / 2**20:.1f} MiB."
    )
    return _Work(lacking, dtype)


def _embed(
    encoder: TextEncoder, store: EmbeddingStore, work: _Work, batch_size: int, shard_bytes: int
) -> Generator[int]:
    """Embed what a store lacks; yield how many captions every batch has."""
    keys, rows, size = list[bytes](), list[Tensor](), 0
    lacking, made = list(work.captions), store.conventions
    try:
        for first in range(0, len(lacking), window := batch_size * _WINDOW):
            some = lacking[first : first + window]
            texts = [work.captions[key] for key in some]
            lengths = token_lengths(encoder.files, made, texts)
            for batch in in_batches(encoder, made.text, texts, lengths, batch_size, work.dtype):
                keys += [some[place] for place, _ in batch]
                rows += [row for _, row in batch]
                size += sum(row.nbytes for _, row in batch)
                if size >= shard_bytes:
                    _write_shard(store.folder, keys, rows)
                    keys, rows, size = [], [], 0
                yield len(batch)
    finally:  # interrupted, a process keeps what it has
        if keys:
            _write_shard(store.folder, keys, rows)


def in_batches(
    encoder: TextEncoder,
    text: TextConfig,
    captions: Sequence[str],
    lengths: Sequence[int],
    batch_size: int,
    dtype: torch.dtype,
) -> Iterator[list[tuple[int, Tensor]]]:
    """Embed captions, about equally long ones at once; yield their places and embeddings.

    Args:
        lengths: tokens of each.

    Yields:
        The places of a batch's captions, each with its embedding: L D, on the CPU.
    """
    order = sorted(range(len(captions)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        answer = encoder.embed([captions[place] for place in places], text)
        # In one piece: selecting rows on a GPU would wait for it once a caption.
        embedding, mask = answer.embedding.to("cpu", dtype), answer.mask.cpu()
        rows = zip(places, embedding, mask, strict=True)
        yield [(place, row[tokens]) for place, row, tokens in rows]


def require_room(folder: Path, size: int, count: int) -> None:
    """Refuse embeddings of so many bytes, of so many captions, for which a disk has no room."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"The embeddings of {count} captions take about {size / 2**30:.1f} GiB but "
            f"{free / 2**30:.1f} GiB are free in {folder}; free some, or give another folder."
        )


def _is_vacant(folder: Path) -> bool:
    """Report whether there is nothing but what another process is about to make a store of."""
    return all(p.name == "spiece.model" or p.suffix == ".partial" for p in folder.iterdir())


def token_lengths(files: EncoderFiles, made: Conventions, captions: Sequence[str]) -> list[int]:
    """Return how many tokens of each caption are stored."""
    if not made.masked:
        return [made.max_length] * len(captions)
    return [
        len(files.tokenizer.encode(clean(caption, made.cleaning), made.max_length))
        for caption in captions
    ]


def _write_shard(folder: Path, keys: Sequence[bytes], rows: Sequence[Tensor]) -> None:
    """Write a shard; named after its captions, so that no two processes write to one file."""
    tensors = {
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1),
        "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int32),
        "rows": torch.cat(list(rows)),
    }
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
    write_bytes(save(tensors), folder / f"{name}.safetensors")
