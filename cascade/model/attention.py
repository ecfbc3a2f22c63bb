"""Attention of the image to itself, to the text, or to both in one softmax.

Shapes: `B` batch, `C H W` channels, height and width, `N = H W` image tokens, `L` text tokens,
`D` width of the projected text.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from cascade.config.unet import UNetConfig
from cascade.model.norm import FilmGroupNorm
from cascade_kernels.joint_attention import joint_attention
from cascade_kernels.names import Backend


class Context(NamedTuple):
    """The projected text as the attention layers read it."""

    tokens: Tensor
    """B L D."""

    length: Tensor
    """B, the number of real tokens; they come first."""


class TextGroupNorm(nn.GroupNorm):
    """GroupNorm of a sequence B L D: over each group of channels and all tokens together."""

    def forward(self, text: Tensor) -> Tensor:
        """Normalise B L D; the masked tokens count in the statistics."""
        return super().forward(text.transpose(1, 2)).transpose(1, 2)


class Attention(nn.Module):
    """Residual multi-head attention over an image: x + out(attend(norm(x), text))."""

    def __init__(
        self, channels: int, kind: Literal["self", "cross", "joint"], config: UNetConfig
    ) -> None:
        super().__init__()
        self.kind = kind
        self.backend: Backend = "auto"
        self.head_channels = config.head_channels
        self.norm = FilmGroupNorm(config.norm_groups, channels, "none")
        # One matrix holds the image's queries and, unless the image is no source, keys and values.
        self.qkv = nn.Linear(channels, channels if kind == "cross" else 3 * channels)
        if kind != "self":
            self.text_norm = (
                nn.LayerNorm(config.context_width)
                if config.text_norm == "layer"
                else TextGroupNorm(config.norm_groups, config.context_width)
            )
            self.text_kv = nn.Linear(config.context_width, 2 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Return x, B C H W, plus what its tokens attended to."""
        q, *image = self._heads(self.qkv(self.norm(x).flatten(2).transpose(1, 2)))
        k, v = image if image else (None, None)
        text_k, text_v = None, None
        if self.kind != "self":
            text_k, text_v = self._heads(self.text_kv(self.text_norm(context.tokens)))
        h = joint_attention(q, k, v, text_k, text_v, context.length, backend=self.backend)
        h = self.out(h.transpose(1, 2).flatten(2))
        attended: Tensor = h.transpose(1, 2).unflatten(2, x.shape[2:])
        return x + attended

    def _heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Split B N (k C) into k tensors B heads N head_channels."""
        channels = self.out.in_features
        parts: Tensor = tokens.unflatten(
            -1, (-1, channels // self.head_channels, self.head_channels)
        )
        return parts.permute(2, 0, 3, 1, 4).unbind()
