"""The U-Net's building blocks, all called alike: block(x, emb, context).

Shapes: `B` batch, `C H W` channels, height and width, `E` the conditioning vector's width.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.unet import LevelAttention, UNetConfig
from cascade.model.attention import Attention, Context
from cascade_kernels.group_norm_film_silu import group_norm_film_silu

Resample = Literal["none", "down", "up"]


def resize(x: Tensor, resample: Resample) -> Tensor:
    """Halve an image by 2x2 averages, or double it by repetition; "none" returns it unchanged."""
    match resample:
        case "down":
            return F.avg_pool2d(x, 2)
        case "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        case "none":
            return x


class ResBlock(nn.Module):
    """Norm-activation-convolution, twice, beside a skip; the second norm takes the conditioning.

    The block of BigGAN as ADM uses it (Dhariwal & Nichol 2021, section 3): a change of resolution
    stands between the first activation and the first convolution, and on the skip.
    """

    def __init__(
        self, in_channels: int, channels: int, config: UNetConfig, resample: Resample = "none"
    ) -> None:
        super().__init__()
        self.resample = resample
        self.activation = config.activation
        self.residual_scale = config.residual_scale
        self.norm1 = nn.GroupNorm(config.norm_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.film = nn.Linear(config.time_width, 2 * channels)
        self.norm2 = nn.GroupNorm(config.norm_groups, channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else None
        # The block starts as its skip: deep networks train better from the identity (ADM).
        nn.init.zeros_(self.conv2.weight)
        if self.conv2.bias is not None:
            nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x, B C_in H W, under the activated conditioning vector emb, B E, to B C H' W'."""
        h = self.conv1(resize(self._norm(self.norm1, x), self.resample))
        scale, shift = self.film(emb).chunk(2, dim=1)
        h = self.conv2(self.dropout(self._norm(self.norm2, h, scale, shift)))
        x = resize(x, self.resample)
        if self.skip is not None:
            x = self.skip(x)
        out: Tensor = x + h
        return out if self.residual_scale == 1 else out * self.residual_scale

    def _norm(
        self,
        norm: nn.GroupNorm,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        return group_norm_film_silu(
            x, norm.weight, norm.bias, norm.num_groups, norm.eps, scale, shift, self.activation
        )


class Unit(nn.Module):
    """A residual block and, at some levels, the attention behind it."""

    def __init__(self, block: ResBlock, attention: Attention | None = None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        """Map x, B C_in H W, under emb, B E, and the text to B C H' W'."""
        x = self.block(x, emb)
        return x if self.attention is None else self.attention(x, context)


class ConvResample(nn.Module):
    """The Efficient U-Net's change of resolution: a strided or an up-sampling 3x3 convolution."""

    def __init__(self, in_channels: int, channels: int, resample: Literal["down", "up"]) -> None:
        super().__init__()
        self.resample = resample
        stride = 2 if resample == "down" else 1
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        """Map x, B C_in H W, to B C H/2 W/2 or B C 2H 2W; the conditioning plays no part."""
        out: Tensor = self.conv(resize(x, "up") if self.resample == "up" else x)
        return out


def attention_for(channels: int, kind: LevelAttention, config: UNetConfig) -> Attention | None:
    """Return a level's attention layer, or None at a level that has none."""
    return None if kind == "none" else Attention(channels, kind, config)
