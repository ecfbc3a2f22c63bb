"""Where training and sampling get their text conditioning from.

A run that knows its prompts beforehand (DreamBooth, sampling) embeds them once and frees the
encoder: `PromptTable`. Pre-training reads thousands of captions and embeds them as they come:
`OnlinePrompts`, one at a time, which suits small encoders. A large one runs beforehand, in large
batches, and training reads its answers from a store, which stands in for it. `ResidentPrompts`
in `resident.py` holds every caption of a dataset on the training device. All answer `rows` alike.

Shapes: `B` prompts, `L` tokens, `D` the encoder's width.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cascade.config.stage import TextConfig
from cascade.text.t5 import TextEmbedding
from cascade.text.tokenizer import Tokenizer

_EMBED_BATCH: Final = 32


class PromptEncoder(Protocol):
    """What turns prompts into embeddings: `TextEncoder`, or a store that remembers its answers."""

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        ...

    @property
    def digest(self) -> str:
        """Tells apart what gives other embeddings: weights, vocabulary, how they are held."""
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
        """Return the embeddings, B L D, padded to one length; None is the null condition."""
        ...


class PromptTable:
    """The embeddings of a fixed set of prompts; needs no encoder once it is built."""

    def __init__(self, embeddings: Mapping[str, Tensor], null: Tensor) -> None:
        """Hold one unpadded L D embedding per prompt and the null condition's."""
        self._embeddings = dict(embeddings)
        self._null = null

    @classmethod
    def build(cls, encoder: PromptEncoder, prompts: Iterable[str], text: TextConfig) -> Self:
        """Embed every distinct prompt once; the encoder may be freed afterwards."""
        distinct = list(dict.fromkeys(prompts))
        embedded = _embed(encoder, distinct, text)
        return cls(dict(zip(distinct, embedded, strict=True)), null_row(encoder, text))

    def to(self, device: torch.device) -> Self:
        """Return a copy on another device."""
        moved = {prompt: row.to(device) for prompt, row in self._embeddings.items()}
        return type(self)(moved, self._null.to(device))

    def rows(self, prompts: Sequence[str | None]) -> TextEmbedding:
        """Return the embeddings of `prompts`, B L D, padded to the longest.

        Raises:
            KeyError: the table was built without one of the prompts.
        """
        return padded([self._null if prompt is None else self._row(prompt) for prompt in prompts])

    def _row(self, prompt: str) -> Tensor:
        if prompt not in self._embeddings:
            raise KeyError(f"the prompt table was built without {prompt!r}")
        return self._embeddings[prompt]


class OnlinePrompts:
    """Embeds prompts when asked and remembers the latest of them."""

    def __init__(self, encoder: PromptEncoder, text: TextConfig, cache_size: int = 16_384) -> None:
        """Keep `encoder`, which is used at every miss.

        Args:
            encoder: a text encoder, or a store of its embeddings.
            text: the checkpoint's conventions.
            cache_size: prompts remembered; the one unused for longest goes first.

        Raises:
            ValueError: `cache_size` is negative.
        """
        if cache_size < 0:
            raise ValueError(f"cache_size is {cache_size}; it must not be negative.")
        self._encoder, self._text, self._cache_size = encoder, text, cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._null = null_row(encoder, text)

    def rows(self, prompts: Sequence[str | None]) -> TextEmbedding:
        """Return the embeddings of `prompts`, B L D, padded to the longest."""
        wanted = dict.fromkeys(prompt for prompt in prompts if prompt is not None)
        misses = [prompt for prompt in wanted if prompt not in self._cache]
        for prompt in misses:
            # Each alone: in a batch its last bits would depend on what else was not remembered,
            # and a run that goes on with an empty cache would not repeat one that never stopped.
            self._cache[prompt] = _embed(self._encoder, [prompt], self._text)[0]
        for prompt in wanted:
            self._cache.move_to_end(prompt)
        rows = [self._null if prompt is None else self._cache[prompt] for prompt in prompts]
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return padded(rows)


def _embed(encoder: PromptEncoder, prompts: Sequence[str], text: TextConfig) -> list[Tensor]:
    """Return one unpadded L D embedding per prompt, float32."""
    rows: list[Tensor] = []
    for start in range(0, len(prompts), _EMBED_BATCH):
        answer = encoder.embed(prompts[start : start + _EMBED_BATCH], text)
        # Selecting copies: a view would keep the whole padded batch alive. In float32, whatever the
        # encoder computes in: what a network is given does not depend on how the encoder is held.
        rows += [row[mask].float() for row, mask in zip(answer.embedding, answer.mask, strict=True)]
    return rows


def null_row(encoder: PromptEncoder, text: TextConfig) -> Tensor:
    """Return the embedding, L D, of the null condition of classifier-free guidance."""
    empty = _embed(encoder, [""], text)[0]
    if text.null == "empty":
        return empty
    # One zero token rather than none: attention over an empty set of keys is NaN. Where padding is
    # read like any token, as many as any other text has.
    return torch.zeros_like(empty[:1] if text.masked else empty)


def padded(rows: Sequence[Tensor]) -> TextEmbedding:
    """Put embeddings L D of different lengths side by side, B L D, with their mask.

    Raises:
        ValueError: there are none.
    """
    if not rows:
        raise ValueError("rows needs at least one prompt.")
    lengths = integers([len(row) for row in rows], rows[0].device)
    embedding = pad_sequence(list(rows), batch_first=True)
    positions = torch.arange(embedding.shape[1], device=embedding.device)
    return TextEmbedding(embedding, positions < lengths[:, None])


def integers(values: Sequence[int], device: torch.device) -> Tensor:
    """Put integers on a device; the host does not wait for a copy to a GPU."""
    cuda = device.type == "cuda"  # from pageable memory the copy would wait for the GPU's queue
    return torch.tensor(values, pin_memory=cuda).to(device, non_blocking=cuda)
