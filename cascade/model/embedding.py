"""The U-Net's conditioning vector: timestep, augmentation level and pooled text.

Shapes: `B` batch, `L` text tokens, `D` width of the text encoder, `E` the conditioning's width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.unet import Activation

MAX_PERIOD = 10_000.0


def activation_layer(name: Activation) -> nn.Module:
    """Return the activation as a layer; "gelu" is the exact one, not the tanh approximation."""
    return nn.SiLU() if name == "silu" else nn.GELU()


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Return [cos(t w_i), sin(t w_i)] with w_i = 10000^(-2i / width), in fp32.

    The order and the spacing are ADM's, hence also DeepFloyd IF's (`flip_sin_to_cos`, no frequency
    shift).

    Args:
        t: timesteps in 0..1000, B.
        width: even number of sinusoids.

    Returns:
        B width.
    """
    half = width // 2
    # Divided last: rounded as in the code that DeepFloyd IF's networks were trained with.
    exponent = -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(exponent / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """Sinusoids of a timestep (or of an augmentation level), then a two-layer perceptron."""

    def __init__(self, sinusoid_width: int, width: int, activation: Activation) -> None:
        super().__init__()
        self.sinusoid_width = sinusoid_width
        self.linear1 = nn.Linear(sinusoid_width, width)
        self.activation = activation_layer(activation)
        self.linear2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Map timesteps in 0..1000, B, to B E."""
        waves = sinusoids(t, self.sinusoid_width).to(self.linear1.weight.dtype)
        out: Tensor = self.linear2(self.activation(self.linear1(waves)))
        return out


class AttentionPooling(nn.Module):
    """One vector from a sequence: its mean, plus a learned offset, attends to it and to itself.

    Imagen pools its text this way (Saharia et al. 2022, appendix F.1, "feature_pooling:
    attention"); the query and the extra key follow DeepFloyd IF.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.offset = nn.Parameter(torch.empty(width))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the offset, as DeepFloyd IF does."""
        nn.init.normal_(self.offset, std=len(self.offset) ** -0.5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool tokens B L D under a mask B L (True = real) into B D."""
        real = mask[:, None, :].to(tokens.dtype)
        count = real.sum(dim=2, keepdim=True).clamp(min=1)
        # A product, where ONNX Runtime would take a sum of one row in another order than of many.
        mean = real @ tokens / count + self.offset
        sequence = torch.cat([mean, tokens], dim=1)
        q, k, v = self.query(mean), self.key(sequence), self.value(sequence)
        # The mean itself is always visible, so a caption without tokens pools to something finite.
        visible = F.pad(mask, (1, 0), value=True)[:, None, None, :]
        pooled = F.scaled_dot_product_attention(
            self._split(q), self._split(k), self._split(v), attn_mask=visible
        )
        return pooled.transpose(1, 2).flatten(1)

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


class TextPooling(nn.Module):
    """The text's share of the conditioning vector, normalised before and after its pooling."""

    def __init__(self, text_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(text_width)
        self.pool = AttentionPooling(text_width, heads)
        self.linear = nn.Linear(text_width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Map text B L D under a mask B L (True = real) to B E."""
        out: Tensor = self.norm2(self.linear(self.pool(self.norm1(text), mask)))
        return out
