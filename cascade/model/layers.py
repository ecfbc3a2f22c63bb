"""The layers of the U-Net: norm, attention, residual blocks, and the backend that they run on.

Shapes: `B` batch, `C H W` channels, height and width, `N = H W` image tokens, `L` text tokens,
`D` width of the projected text, `E` the conditioning vector's width. Blocks are called alike:
block(x, emb, context), with a skip in decoders.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.unet import Activation, LevelAttention, UNetConfig
from cascade.model.recompute import Block
from cascade_kernels.group_norm_film_silu import group_norm_film_silu
from cascade_kernels.joint_attention import joint_attention
from cascade_kernels.names import Backend


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero."""

    def reset_parameters(self) -> None:
        """Set weight and bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class FilmGroupNorm(nn.GroupNorm):
    """activation(group_norm(x) * (1 + scale) + shift), over an image or over two stacked ones."""

    def __init__(
        self, groups: int, channels: int, activation: Activation | Literal["none"]
    ) -> None:
        super().__init__(groups, channels)
        self.activation: Activation | Literal["none"] = activation
        self.backend: Backend = "auto"

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        skip: Tensor | None = None,
        skip_scale: float = 1.0,
    ) -> Tensor:
        """Normalise an image.

        Args:
            x: B C1 H W.
            scale: B C, with `shift`; None without conditioning.
            shift: B C.
            skip: B C2 H W, stacked behind x; C = C1 + C2. None: C = C1.
            skip_scale: factor on `skip`.

        Returns:
            B C H W.
        """
        return group_norm_film_silu(
            x,
            self.weight,
            self.bias,
            self.num_groups,
            self.eps,
            scale,
            shift,
            self.activation,
            skip=skip,
            skip_scale=skip_scale,
            backend=self.backend,
        )


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
        self.out = ZeroLinear(channels, channels)

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
        self.skip_scale = config.skip_scale
        self.residual_scale = config.residual_scale
        self.norm1 = FilmGroupNorm(config.norm_groups, in_channels, config.activation)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.film = nn.Linear(config.time_width, 2 * channels)
        self.norm2 = FilmGroupNorm(config.norm_groups, channels, config.activation)
        self.dropout = nn.Dropout(config.dropout)
        # The block starts as its skip: deep networks train better from the identity (ADM).
        self.conv2 = ZeroConv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else None

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        """Run the block on x and, in a decoder, on an encoder's skip stacked behind it.

        Args:
            x: B C_x H W.
            emb: the activated conditioning vector, B E.
            skip: B C_skip H W; C_x + C_skip are the block's input channels. None in an encoder and
                wherever the block changes the resolution.

        Returns:
            B C H' W'.
        """
        h = self.norm1(x, skip=skip, skip_scale=self.skip_scale)
        h = self.conv1(resize(h, self.resample))
        scale, shift = self.film(emb).chunk(2, dim=1)
        h = self.conv2(self.dropout(self.norm2(h, scale, shift)))
        out: Tensor = self._shortcut(resize(x, self.resample), skip) + h
        return out if self.residual_scale == 1 else out * self.residual_scale

    def _shortcut(self, x: Tensor, skip: Tensor | None) -> Tensor:
        if self.skip is None:
            return x if skip is None else torch.cat([x, skip * self.skip_scale], dim=1)
        if skip is None:
            narrowed: Tensor = self.skip(x)
            return narrowed
        if torch.compiler.is_exporting():
            # A graph must keep the weight whole: engines are refitted by its name.
            stacked: Tensor = self.skip(torch.cat([x, skip * self.skip_scale], dim=1))
            return stacked
        # W [x; s skip] = W_x x + s W_skip skip: the stacked image is never written.
        of_x, of_skip = self.skip.weight.split([x.shape[1], skip.shape[1]], dim=1)
        return F.conv2d(x, of_x, self.skip.bias) + F.conv2d(skip, of_skip * self.skip_scale)


class UNetBlock(Block):
    """A residual block and, at some levels, the attention behind it."""

    def __init__(self, block: ResBlock, attention: Attention | None = None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def run(self, x: Tensor, emb: Tensor, context: Context, skip: Tensor | None = None) -> Tensor:
        """Map x, B C_x H W, and a decoder's skip under emb, B E, and the text to B C H' W'."""
        x = self.block(x, emb, skip)
        return x if self.attention is None else self.attention(x, context)


class ConvResample(Block):
    """The Efficient U-Net's change of resolution: a strided or an up-sampling 3x3 convolution."""

    def __init__(self, in_channels: int, channels: int, resample: Literal["down", "up"]) -> None:
        super().__init__()
        self.resample = resample
        stride = 2 if resample == "down" else 1
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)

    def run(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        """Map x, B C_in H W, to B C H/2 W/2 or B C 2H 2W; the conditioning plays no part."""
        out: Tensor = self.conv(resize(x, "up") if self.resample == "up" else x)
        return out


def attention_for(channels: int, kind: LevelAttention, config: UNetConfig) -> Attention | None:
    """Return a level's attention layer, or None at a level that has none."""
    return None if kind == "none" else Attention(channels, kind, config)


def set_backend(network: nn.Module, backend: Backend) -> None:
    """Let every norm and attention of a network run on one backend.

    Args:
        network: changed in place; may be changed again at any time.
        backend: "auto" takes a kernel where one was measured to be the best choice, "triton"
            always (an error where it cannot run), "reference" plain PyTorch.
    """
    for module in network.modules():
        if isinstance(module, Attention | FilmGroupNorm):
            module.backend = backend
