"""Where training and sampling get their text conditioning from.

A run that knows its prompts beforehand (DreamBooth, sampling) embeds them once and frees the
encoder: `PromptTable`. Pre-training reads thousands of captions and embeds them as they come:
`OnlinePrompts`, one at a time, which suits small encoders. A large one runs beforehand, in large
batches, and training reads its answers from disk: `StoredPrompts` in `store.py`. `ResidentPrompts`
in `resident.py` holds every caption of a dataset on the training device. All answer `rows` alike.

Shapes: `B` prompts, `L` tokens, `D` the encoder's width.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, Protocol, Self, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cascade.text.cleaning import Cleaning
from cascade.text.t5 import TextEmbedding
from cascade.text.tokenizer import Tokenizer

Null: TypeAlias = Literal["zeros", "empty"]
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

    def embed(
        self, prompts: Sequence[str], max_length: int, cleaning: Cleaning, masked: bool = True
    ) -> TextEmbedding:
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
    def build(
        cls,
        encoder: PromptEncoder,
        prompts: Iterable[str],
        max_length: int,
        cleaning: Cleaning,
        null: Null,
        masked: bool = True,
    ) -> Self:
        """Embed every distinct prompt once.

        Args:
            encoder: may be freed afterwards.
            prompts: what `rows` will be asked for.
            max_length: tokens kept of each prompt.
            cleaning: what the checkpoint does to prompts first.
            null: the null condition of classifier-free guidance: `zeros` (Imagen) is one zero
                token, `empty` (DeepFloyd IF) the embedding of "".
            masked: whether padding is hidden from the network, as in `TextEncoder.embed`.
        """
        distinct = list(dict.fromkeys(prompts))
        embedded = _embed(encoder, distinct, max_length, cleaning, masked)
        table = dict(zip(distinct, embedded, strict=True))
        return cls(table, null_row(encoder, max_length, cleaning, null, masked))

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

    def __init__(
        self,
        encoder: PromptEncoder,
        max_length: int,
        cleaning: Cleaning,
        null: Null,
        cache_size: int = 16_384,
        masked: bool = True,
    ) -> None:
        """Keep `encoder`; the other arguments are as in `PromptTable.build`.

        Args:
            encoder: used at every miss.
            max_length: tokens kept of each prompt.
            cleaning: what the checkpoint does to prompts first.
            null: the null condition.
            cache_size: prompts remembered; the one unused for longest goes first.
            masked: whether padding is hidden from the network, as in `TextEncoder.embed`.

        Raises:
            ValueError: `cache_size` is not positive.
        """
        if cache_size < 1:
            raise ValueError(f"cache_size is {cache_size}; it must be positive.")
        self._encoder = encoder
        self._max_length = max_length
        self._cleaning: Cleaning = cleaning
        self._masked = masked
        self._cache_size = cache_size
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._null = null_row(encoder, max_length, cleaning, null, masked)

    def rows(self, prompts: Sequence[str | None]) -> TextEmbedding:
        """Return the embeddings of `prompts`, B L D, padded to the longest."""
        wanted = dict.fromkeys(prompt for prompt in prompts if prompt is not None)
        misses = [prompt for prompt in wanted if prompt not in self._cache]
        for prompt in misses:
            # Each alone: in a batch its last bits would depend on what else was not remembered,
            # and a run that goes on with an empty cache would not repeat one that never stopped.
            embedded = _embed(
                self._encoder, [prompt], self._max_length, self._cleaning, self._masked
            )
            self._cache[prompt] = embedded[0]
        for prompt in wanted:
            self._cache.move_to_end(prompt)
        rows = [self._null if prompt is None else self._cache[prompt] for prompt in prompts]
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return padded(rows)


def _embed(
    encoder: PromptEncoder,
    prompts: Sequence[str],
    max_length: int,
    cleaning: Cleaning,
    masked: bool,
) -> list[Tensor]:
    """Return one unpadded L D embedding per prompt, float32."""
    rows: list[Tensor] = []
    for start in range(0, len(prompts), _EMBED_BATCH):
        text = encoder.embed(prompts[start : start + _EMBED_BATCH], max_length, cleaning, masked)
        # Selecting copies: a view would keep the whole padded batch alive. In float32, whatever the
        # encoder computes in: what a network is given does not depend on how the encoder is held.
        rows += [row[mask].float() for row, mask in zip(text.embedding, text.mask, strict=True)]
    return rows


def null_row(
    encoder: PromptEncoder, max_length: int, cleaning: Cleaning, null: Null, masked: bool
) -> Tensor:
    """Return the null condition's embedding, L D; the arguments are as in `PromptTable.build`."""
    empty = _embed(encoder, [""], max_length, cleaning, masked)[0]
    if null == "empty":
        return empty
    # One zero token rather than none: attention over an empty set of keys is NaN. Where padding is
    # read like any token, as many as any other text has.
    return torch.zeros_like(empty[:1] if masked else empty)


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
