"""Every caption of a dataset, embedded once and held on the training device.

Shapes: `B` prompts, `N` captions and the null condition, `L` tokens, `D` the encoder's width.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

import torch
from torch import Tensor

from cascade.config.stage import TextConfig
from cascade.text.prompts import PromptEncoder, integers, null_row
from cascade.text.t5 import TextEmbedding

_EMBED_BATCH: Final = 256


class ResidentPrompts:
    """A fixed set of prompts as one padded table; a batch is a gather on its device.

    The table is embedded in the same batches at every start, so that a run that goes on sees the
    embeddings of the one that stopped to the last bit.
    """

    def __init__(self, table: Tensor, lengths: Tensor, places: Mapping[str | None, int]) -> None:
        """Hold embeddings N L D, how many tokens of each are real (N), and whose row is whose."""
        self._table = table
        self._lengths = lengths
        self._places = dict(places)

    @classmethod
    def build(
        cls,
        encoder: PromptEncoder,
        prompts: Iterable[str],
        text: TextConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """Embed every distinct prompt once.

        Args:
            encoder: may be freed afterwards.
            prompts: what `rows` will be asked for.
            text: the checkpoint's conventions.
            dtype: the table's; bfloat16 loses nothing of an encoder that computes in it.
            device: where the table lies; it takes `table_bytes` of it.
        """
        distinct = list(dict.fromkeys(prompts))
        count = 1 + len(distinct)
        table = torch.zeros((count, text.max_length, encoder.width), dtype=dtype, device=device)
        lengths = torch.zeros(count, dtype=torch.int64, device=device)
        nothing = null_row(encoder, text)
        table[0, : len(nothing)], lengths[0] = nothing.to(device, dtype), len(nothing)
        for start in range(0, len(distinct), _EMBED_BATCH):
            batch = distinct[start : start + _EMBED_BATCH]
            answer = encoder.embed(batch, text)
            places = slice(1 + start, 1 + start + len(batch))
            table[places, : answer.embedding.shape[1]] = answer.embedding.to(device, dtype)
            lengths[places] = answer.mask.sum(dim=1).to(device)
        rows = {prompt: place for place, prompt in enumerate((None, *distinct))}
        return cls(table[:, : int(lengths.max())], lengths, rows)

    def rows(self, prompts: Sequence[str | None]) -> TextEmbedding:
        """Return the embeddings of `prompts`, B L D in float32, padded to the table's longest.

        One length for every batch: a compiled network is compiled once.

        Raises:
            KeyError: the table was built without one of the prompts.
            ValueError: there are none.
        """
        if not prompts:
            raise ValueError("rows needs at least one prompt.")
        index = integers([self._places[prompt] for prompt in prompts], self._table.device)
        tokens = torch.arange(self._table.shape[1], device=self._table.device)
        return TextEmbedding(self._table[index].float(), tokens < self._lengths[index][:, None])


def table_bytes(prompts: Iterable[str], max_length: int, width: int, dtype: torch.dtype) -> int:
    """What `ResidentPrompts` takes of its device; captions are reckoned at their full length."""
    return (1 + len(set(prompts))) * max_length * width * dtype.itemsize
