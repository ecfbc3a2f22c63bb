"""Embeddings of captions on disk, so that training and sampling need no encoder.

A store is a folder:

* `store.json`: the conventions its embeddings were made with;
* `spiece.model`: the tokenizer's vocabulary;
* `pictures/`: embeddings that lie beside the pictures of data sets, `cascade.data.texts`;
* `*.safetensors`: shards, each with `rows` (T D: the embeddings of its captions one after another,
  unpadded; bfloat16, or float32 where they are to be the encoder's to the last bit), `lengths`
  (int32, N: rows of each) and `keys` (uint8, N 16).

A caption's key is the hash of the conventions and its cleaned text. Its embedding is the same at
every reading, whatever batch it was computed in.

Shapes: `B` prompts, `L` tokens, `D` the encoder's width, `N` captions and `T` tokens of a shard.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cascade.config.stage import Cleaning, TextConfig
from cascade.errors import UserError
from cascade.files import write_json
from cascade.tensors import opened
from cascade.text.cleaning import clean
from cascade.text.encoder import TextEmbedding
from cascade.text.files import EncoderFiles
from cascade.text.tokenizer import Tokenizer

NOTE: Final = "store.json"
KEY_BYTES: Final = 16
_OPEN: Final = 256  # below the number of files that systems let a process open
_NAMED: Final = 8  # missing captions that an error spells out
# NumPy drops zeros at the end; of keys that are equally long, the order and equality stay.
_KEY: Final = np.dtype((np.bytes_, KEY_BYTES))


@dataclass(frozen=True)
class Conventions:
    """Everything that a caption's embedding depends on beside its text.

    Attributes:
        model: digest of the encoder's weights.
        tokenizer: digest of the vocabulary.
        quantised: whether the encoder ran in 8 bits, which changes its answers by about 1 %.
        max_length: tokens kept of a caption.
        cleaning: what is done to a caption first.
        masked: whether padding is hidden from the network; if not, it is stored too.
        width: `D`.
    """

    model: str
    tokenizer: str
    quantised: bool
    max_length: int
    cleaning: Cleaning
    masked: bool
    width: int

    @classmethod
    def of(cls, files: EncoderFiles, quantised: bool, text: TextConfig) -> Self:
        """Return an encoder's conventions; reads its digests."""
        return cls(
            model=files.model_digest,
            tokenizer=files.tokenizer_digest,
            quantised=quantised,
            width=files.width,
            **text.model_dump(exclude={"null"}),
        )

    @property
    def text(self) -> TextConfig:
        """How captions are read; the null text is up to the reader."""
        return TextConfig(max_length=self.max_length, cleaning=self.cleaning, masked=self.masked)

    @cached_property
    def _prefix(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode() + b"\0"

    def key(self, caption: str) -> bytes:
        """Return the hash that a caption's embedding is stored under."""
        text = clean(caption, self.cleaning).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(self._prefix + text, digest_size=KEY_BYTES).digest()

    def command(self, encoder: str, output: str) -> list[str]:
        """Return the command that adds embeddings to a store, without what is to be embedded."""
        command = ["cascade", "embed", "--encoder", encoder, "--output", output]
        command += ["--cleaning", self.cleaning, "--max-length", str(self.max_length)]
        command += [] if self.masked else ["--unmasked"]
        return command + (["--encoder-mode", "int8"] if self.quantised else [])


@dataclass(frozen=True)
class Index:
    """Positions of the stored captions.

    Attributes:
        keys: N of 16 bytes, ascending.
        spans: N 3; number of the shard, first row in it, number of rows.
    """

    keys: np.ndarray
    spans: np.ndarray

    @classmethod
    def read(cls, shards: Sequence[Path]) -> Self:
        """Read the keys of all shards, none of their embeddings."""
        keys = [np.zeros(0, _KEY)]
        spans = [np.zeros((0, 3), np.int64)]
        for number, path in enumerate(shards):
            shard = _shard(path)
            keys.append(np.ascontiguousarray(shard.get_tensor("keys").numpy()).view(_KEY)[:, 0])
            lengths = shard.get_tensor("lengths").numpy().astype(np.int64)
            starts = np.cumsum(lengths) - lengths
            spans.append(np.stack([np.full_like(lengths, number), starts, lengths], axis=1))
        key = np.concatenate(keys)
        order = np.argsort(key, kind="stable")
        return cls(key[order], np.concatenate(spans)[order])

    def find(self, key: bytes) -> tuple[int, int, int] | None:
        """Return the shard, the first row and the number of rows of a key, or None."""
        wanted = np.frombuffer(key, _KEY)[0]
        at = int(np.searchsorted(self.keys, wanted))
        if at == len(self.keys) or self.keys[at] != wanted:
            return None
        shard, start, length = self.spans[at].tolist()
        return shard, start, length


@dataclass(frozen=True)
class EmbeddingStore:
    """An opened store, which stands in for the encoder that made it.

    Attributes:
        folder: where it is.
        conventions: what its embeddings were made with.
        encoder: the encoder's folder at that time, for people.
        shards: its shards; those written after it was opened are not among them.
        index: where every caption lies.
    """

    folder: Path
    conventions: Conventions
    encoder: str
    shards: tuple[Path, ...]
    index: Index

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store: read its shards' keys, none of their embeddings."""
        conventions, encoder = read_note(folder)
        shards = tuple(sorted(folder.glob("[!.]*.safetensors")))
        return cls(folder, conventions, encoder, shards, Index.read(shards))

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        return self.conventions.width

    @property
    def digest(self) -> str:
        """Digest of everything that its embeddings were made with."""
        return hashlib.sha256(self.conventions.key("")).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the encoder that made it."""
        return Tokenizer(self.folder / "spiece.model")

    def __len__(self) -> int:
        """Return the number of captions."""
        return len(self.index.keys)

    def __contains__(self, caption: str) -> bool:
        """Report whether a caption is stored."""
        return self.index.find(self.conventions.key(caption)) is not None

    def check_encoder(self, files: EncoderFiles) -> None:
        """Check that an encoder is the one that made the store."""
        same = {
            "vocabulary": files.tokenizer_digest == self.conventions.tokenizer,
            "weights": files.model_digest == self.conventions.model,
        }
        for what, agrees in same.items():
            if not agrees:
                raise UserError(
                    f"The embeddings in {self.folder} come from an encoder with other {what} than "
                    f"the one in {files.folder}; embed the captions with that one, into another "
                    "store."
                )

    def check_text(self, text: TextConfig) -> None:
        """Check that a stage reads text by the store's conventions."""
        for name, value in text.model_dump(exclude={"null"}).items():
            stored = getattr(self.conventions, name)
            if stored != value:
                raise UserError(
                    f"The embeddings in {self.folder} were made with {name} = {stored} but the "
                    f"stage reads text with {name} = {value}; embed the captions by the stage's "
                    "conventions, into another store."
                )

    def require(self, captions: Iterable[str]) -> None:
        """Check that every caption is stored."""
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self]
        if missing:
            raise self._missing(missing)

    def row(self, caption: str) -> Tensor:
        """Return one caption's embedding, L D in float32."""
        span = self.index.find(self.conventions.key(caption))
        if span is None:
            raise self._missing([caption])
        shard, start, length = span
        rows: Tensor = _shard(self.shards[shard]).get_slice("rows")[start : start + length]
        return rows.float()

    def embed(self, prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        """Return what the encoder would, B L D in float32; see `TextEncoder.embed`."""
        self.check_text(text)
        self.require(prompts)
        return TextEmbedding.padded([self.row(prompt) for prompt in prompts])

    def _missing(self, captions: Sequence[str]) -> UserError:
        command = self.conventions.command(self.encoder, str(self.folder))
        for caption in captions[:_NAMED]:
            command += ["--caption", caption]
        others = f" and {len(captions) - 1} more" if len(captions) > 1 else ""
        return UserError(
            f"The store {self.folder} has no embedding of '{captions[0]}'{others}; add what is "
            f"missing, for instance with: {shlex.join(command)}"
        )


def read_note(folder: Path) -> tuple[Conventions, str]:
    """Read a store's `store.json`: its conventions, and where its encoder was."""
    path = folder / NOTE
    if not path.is_file():
        raise UserError(f"{folder} is no store of embeddings; make one with 'cascade embed'.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(Conventions).validate_python(values["conventions"]), values["encoder"]
    except (ValueError, KeyError, TypeError, ValidationError):
        raise UserError(
            f"{path} is damaged; remove the store and embed the captions again."
        ) from None


def write_note(folder: Path, conventions: Conventions, encoder: str) -> None:
    """Write a store's `store.json`, the first of its files."""
    write_json({"conventions": asdict(conventions), "encoder": encoder}, folder / NOTE)


@lru_cache(maxsize=_OPEN)
def _shard(path: Path) -> Any:
    return opened(path, mend="remove it and run 'cascade embed' again, which embeds it anew")
