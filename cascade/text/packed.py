"""The embeddings of a batch's captions in one tensor, as worker processes hand them over.

Shapes: `B` rows, `L` tokens, `T` tokens of all rows, `D` the encoder's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cascade.text.encoder import TextEmbedding, integers


@dataclass(frozen=True)
class PackedTexts:
    """Unpadded embeddings, one after another: one copy to a device, whatever the lengths.

    Attributes:
        tokens: T D.
        lengths: B, tokens of each row; 0 is the null text, which lies elsewhere.
    """

    tokens: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def pack(cls, rows: Sequence[Tensor | None], width: int) -> Self:
        """Put embeddings L D one after another; None is the null text.

        Args:
            width: `D`, which rows that are all the null text do not say.
        """
        given = [row for row in rows if row is not None]
        tokens = torch.cat(given) if given else torch.empty(0, width, dtype=torch.bfloat16)
        return cls(tokens, tuple(0 if row is None else len(row) for row in rows))

    def joined(self, other: "PackedTexts") -> "PackedTexts":
        """Put another batch's rows behind these."""
        return PackedTexts(torch.cat([self.tokens, other.tokens]), self.lengths + other.lengths)

    def padded(self, null: TextEmbedding) -> TextEmbedding:
        """Return the embeddings B L D in float32, padded to the longest, on the tokens' device.

        Args:
            null: the null text, 1 L D, on the same device.
        """
        device, has_null = self.tokens.device, 0 in self.lengths
        longest = max(*self.lengths, null.mask.shape[1] if has_null else 0)
        lengths = integers(self.lengths, device)[:, None]
        place = torch.arange(longest, device=device)
        mask = place < lengths
        padding = self.tokens.new_zeros(1, self.tokens.shape[1])
        start = 1 + lengths.cumsum(0) - lengths
        gathered = torch.cat([padding, self.tokens])[torch.where(mask, start + place, 0)]
        text = TextEmbedding(gathered.float(), mask)
        if not has_null:
            return text
        null, absent = null.extended(longest), lengths == 0
        return TextEmbedding(
            torch.where(absent[:, :, None], null.embedding.float(), text.embedding),
            torch.where(absent, null.mask, mask),
        )
