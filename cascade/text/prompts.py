"""Sources of text conditioning for training and sampling.

A run that knows its prompts beforehand embeds them once and frees the encoder: `PromptTable`.
Pre-training on many captions embeds them as they come: `OnlinePrompts`, one at a time, which suits
small encoders. A large one runs beforehand, in large batches (`cascade embed`), and its store of
embeddings stands in for it.

Shapes: `B` prompts, `L` tokens, `T` tokens of all prompts, `D` the encoder's width.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

import torch
from torch import Tensor

from cascade.config.encoder import EncoderMode
from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.progress import warn
from cascade.text.encoder import TextEmbedding, TextEncoder, integers, meta_model
from cascade.text.files import EncoderFiles
from cascade.text.store import EmbeddingStore
from cascade.text.tokenizer import Tokenizer

_EMBED_BATCH: Final = 32


class PromptEncoder(Protocol):
    """A text encoder, or a store of its embeddings."""

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        ...

    @property
    def digest(self) -> str:
        """Digest of all that embeddings depend on: weights, vocabulary, how they are held."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts go through."""
        ...

    def embed(self, prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        """Embed prompts as `TextEncoder.embed` does."""
        ...


class PromptSource(Protocol):
    """Something that has the embeddings of prompts."""

    def rows(self, prompts: Sequence[str | None]) -> TextEmbedding:
        """Return the embeddings, B L D in float32, padded to one length; None is the null text."""
        ...


class PromptTable:
    """The embeddings of a fixed set of prompts, on one device; needs no encoder once it is built.

    They lie unpadded one after another, so that a batch is a gather.
    """

    def __init__(
        self,
        embeddings: Mapping[str | None, Tensor],
        device: torch.device | None = None,
        one_length: bool = False,
    ) -> None:
        """Take an unpadded L D embedding for each prompt, and for None, the null text.

        Args:
            device: theirs by default.
            one_length: pad every batch to the longest prompt of all, so that a compiled network is
                compiled once.
        """
        self._spans: dict[str | None, tuple[int, int]] = {}
        begin = 1  # the first row is the padding
        for prompt, rows in embeddings.items():
            self._spans[prompt] = begin, len(rows)
            begin += len(rows)
        padding = torch.zeros_like(next(iter(embeddings.values()))[:1])
        self._tokens = torch.cat([padding, *embeddings.values()]).to(device)
        self._least = max(length for _, length in self._spans.values()) if one_length else 0

    @classmethod
    def build(
        cls,
        encoder: PromptEncoder,
        prompts: Iterable[str],
        text: TextConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        one_length: bool = False,
        alone: bool = False,
    ) -> Self:
        """Embed every distinct prompt once; the encoder may be freed afterwards.

        The same prompts are embedded in the same batches, so that a run that goes on sees the
        embeddings of the one that stopped to the last bit.

        Args:
            dtype: the table's; bfloat16 loses nothing of an encoder that computes in it.
            device: the encoder's by default.
            alone: embed each by itself, so that its last bits do not depend on the others; an
                encoder that reads its weights from disk for every batch takes them together.
        """
        distinct = list(dict.fromkeys(prompts))
        from_disk = isinstance(encoder, TextEncoder) and encoder.mode == "layerwise"
        at_once = 1 if alone and not from_disk else _EMBED_BATCH
        null = _null_row(encoder, text)
        rows: dict[str | None, Tensor] = {None: null.to("cpu", dtype)}
        for start in range(0, len(distinct), at_once):
            batch = distinct[start : start + at_once]
            answer = encoder.embed(batch, text)
            for prompt, row, mask in zip(batch, answer.embedding, answer.mask, strict=True):
                # Selecting copies, where a view would keep the whole padded batch alive. On the
                # host: a GPU never has room for the table twice.
                rows[prompt] = row[mask].to("cpu", dtype)
        return cls(rows, device or null.device, one_length)

    def rows(self, prompts: Sequence[str | None]) -> TextEmbedding:
        """Return the embeddings of `prompts`; see `PromptSource`.

        Raises:
            KeyError: the table was built without one of the prompts.
            ValueError: there are none.
        """
        if not prompts:
            raise ValueError("rows needs at least one prompt.")
        spans = [self._spans[prompt] for prompt in prompts]
        device = self._tokens.device
        starts, lengths = integers(spans, device)[:, :, None].unbind(1)
        tokens = torch.arange(max(self._least, *(length for _, length in spans)), device=device)
        mask = tokens < lengths
        embedding = self._tokens[torch.where(mask, starts + tokens, 0)]
        return TextEmbedding(embedding.float(), mask)


class OnlinePrompts:
    """The embeddings of any prompts, made when they are asked for; the latest are kept.

    Several threads may ask.
    """

    def __init__(self, encoder: PromptEncoder, text: TextConfig, cache_size: int = 16_384) -> None:
        """Keep `encoder`, and up to `cache_size` embeddings; the one unused for longest goes."""
        self._encoder, self._text, self._cache_size = encoder, text, cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self._null = _null_row(encoder, text)

    def __contains__(self, prompt: str | None) -> bool:
        """Return whether a prompt's embedding is kept."""
        return prompt is None or prompt in self._cache

    def rows(self, prompts: Sequence[str | None]) -> TextEmbedding:
        """Return the embeddings of `prompts`; see `PromptSource`."""
        with self._lock:
            return TextEmbedding.padded(self._rows(prompts))

    def _rows(self, prompts: Sequence[str | None]) -> list[Tensor]:
        for prompt in dict.fromkeys(prompts):
            if prompt is None:
                continue
            if prompt not in self._cache:
                # Each alone: in a batch its last bits would depend on what else was not cached,
                # and a run that goes on with an empty cache would not repeat one that never
                # stopped.
                self._cache[prompt] = _row(self._encoder, prompt, self._text)
            self._cache.move_to_end(prompt)
        rows = [self._null if prompt is None else self._cache[prompt] for prompt in prompts]
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return rows


def open_text(encoder: Path | None, embeddings: Path | None) -> EncoderFiles | EmbeddingStore:
    """Open what text will come from; loads no weights.

    Args:
        encoder: folder of the encoder. Where there is a store it need not exist; if it does, the
            store must have been made with it.
        embeddings: folder of a store, which is used instead of the encoder.
    """
    if embeddings is None:
        if encoder is None:
            raise UserError("There is no text encoder; give its folder, or a store of embeddings.")
        if not encoder.is_dir():
            raise UserError(
                f"There is no text encoder folder {encoder}; fetch it, name another in "
                "cascade.json (cascade import --text-encoder), or give a store of its embeddings "
                "(--embeddings)."
            )
        files = EncoderFiles.open(encoder)
        meta_model(files)
        return files
    store = EmbeddingStore.open(embeddings)
    if encoder is not None and encoder.is_dir():
        store.check_encoder(EncoderFiles.open(encoder))
    return store


def load_text(
    text: EncoderFiles | EmbeddingStore,
    mode: EncoderMode = "auto",
    device: torch.device | str = "cpu",
) -> PromptEncoder:
    """Load the encoder, or return the store that stands in for it.

    Warn where `auto` settles for less than float32.
    """
    if isinstance(text, EmbeddingStore):
        return text
    encoder = TextEncoder.load(text, mode, device)
    if mode == "auto" and encoder.mode != "float32":
        warn(
            f"In float32 the text encoder would take more than half of the memory of {device}; "
            f"it is held in {encoder.mode}."
        )
    return encoder


def _row(encoder: PromptEncoder, prompt: str, text: TextConfig) -> Tensor:
    """Embed one prompt, L D in float32: a network's input does not depend on the encoder's type."""
    return encoder.embed([prompt], text).embedding[0].float()


def _null_row(encoder: PromptEncoder, text: TextConfig) -> Tensor:
    """Return the embedding, L D, of the null text of classifier-free guidance."""
    empty = _row(encoder, "", text)
    if text.null == "empty":
        return empty
    # One zero token rather than none: attention over an empty set of keys is NaN. Where padding is
    # read like any token, as many as any other text has.
    return torch.zeros_like(empty[:1] if text.masked else empty)
