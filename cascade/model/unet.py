"""The one U-Net of the cascade: every stage is a value of `UNetConfig`.

Sources: ADM (Dhariwal & Nichol 2021) for the blocks; Imagen (Saharia et al. 2022, sections 2.4 and
2.5, appendices B.1 and F) for the text conditioning, the Efficient U-Net and the noise conditioning
augmentation; DeepFloyd IF for the details neither paper states.

Shapes: `B` batch, `C H W` channels, height and width, `L` text tokens, `D` width of the text
encoder, `E` the conditioning vector's width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cascade.config.unet import UNetConfig
from cascade.model.embedding import TextPooling, TimestepEmbedding
from cascade.model.layers import (
    Context,
    ConvResample,
    FilmGroupNorm,
    ResBlock,
    UNetBlock,
    ZeroConv2d,
    attention_for,
)
from cascade.model.recompute import Block

IMAGE_CHANNELS = 3


class Step(NamedTuple):
    """One block of a path; `skip` marks where the encoder leaves, or the decoder takes, a skip."""

    block: Block
    skip: bool


class UNet(nn.Module):
    """A text-conditional U-Net on pixels; predicts from z_t whatever its denoiser trains it for.

    Every zero-initialised layer (the last of each block, of each attention and of the network)
    makes the new network's output zero.

    Args:
        config: its shape.

    Attributes:
        device: where inputs go; set where weights lie elsewhere.
    """

    device: torch.device

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first = config.channels[0]
        self.time_embedding = TimestepEmbedding(first, config.time_width, config.activation)
        self.aug_embedding = (
            TimestepEmbedding(first, config.time_width, config.activation)
            if config.low_res
            else None
        )
        self.text_pooling = TextPooling(config.text_width, config.time_width, config.pool_heads)
        # Built only where it is read: a parameter without a gradient stalls distributed training.
        self.text_projection = (
            nn.Linear(config.text_width, config.context_width)
            if {"cross", "joint"} & set(config.attention)
            else None
        )
        self.conv_in = nn.Conv2d(IMAGE_CHANNELS * (1 + config.low_res), first, 3, padding=1)
        encoder, middle, decoder = _paths(config)
        self.encoder = nn.ModuleList(step.block for step in encoder)
        self.middle = nn.ModuleList(middle)
        self.decoder = nn.ModuleList(step.block for step in decoder)
        self._leaves = tuple(step.skip for step in encoder)
        self._skips_input = config.resample == "residual" or config.full_resolution_skip
        self._takes = tuple(step.skip for step in decoder)
        self.norm_out = FilmGroupNorm(config.norm_groups, first, config.activation)
        self.conv_out = ZeroConv2d(
            first, IMAGE_CHANNELS * (1 + config.learned_variance), 3, padding=1
        )

    @property
    def blocks(self) -> list[Block]:
        """The blocks in the order they run; around them are embeddings and two convolutions."""
        paths = (self.encoder, self.middle, self.decoder)
        return [block for path in paths for block in path if isinstance(block, Block)]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            x: the variance-preserving noisy image z_t, B 3 H W; H and W divisible by
                `config.factor`.
            t: timesteps in 0..1000, B float.
            text: the text encoder's embeddings, B L D.
            text_mask: B L bool, True at real tokens, which come first in every row.
            low_res: the low-resolution image, up-sampled to H W and noised, B 3 H W. Given if and
                only if the network is a super-resolution one, as is `aug`.
            aug: the augmentation's timesteps in 0..1000, B float.

        Returns:
            The prediction, B 3 H W; B 6 H W with a learned variance, the prediction first.

        Raises:
            ValueError: H or W does not divide, or `low_res` and `aug` do not fit the network.
        """
        self._check(x, low_res, aug)
        emb = self._conditioning(t, text, text_mask, aug)
        tokens = text if self.text_projection is None else self.text_projection(text)
        context = Context(tokens, text_mask.sum(dim=1))
        image = x if low_res is None else torch.cat([x, low_res], dim=1)
        # Channels last from here on: convolutions and norms of every device are fastest so, and
        # the attention layers read B C H W as B HW C without a copy.
        h = self.conv_in(image.contiguous(memory_format=torch.channels_last))
        skips = [h] if self._skips_input else []
        for block, leaves in zip(self.encoder, self._leaves, strict=True):
            h = block(h, emb, context)
            if leaves:
                skips.append(h)
        for block in self.middle:
            h = block(h, emb, context)
        for block, takes in zip(self.decoder, self._takes, strict=True):
            h = block(h, emb, context, *([skips.pop()] if takes else []))
        return self._out(h)

    def _out(self, h: Tensor) -> Tensor:
        """Return the prediction, in fp32 under autocast too: guidance magnifies its rounding."""
        kind = h.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._out(h.float())
        out: Tensor = self.conv_out(self.norm_out(h))
        return out

    def _conditioning(
        self, t: Tensor, text: Tensor, text_mask: Tensor, aug: Tensor | None
    ) -> Tensor:
        """Return the conditioning vector B E, activated once here instead of in every block."""
        emb = self.time_embedding(t) + self.text_pooling(text, text_mask)
        if self.aug_embedding is not None:
            emb = emb + self.aug_embedding(aug)
        out: Tensor = self.time_embedding.activation(emb)
        return out

    def _check(self, x: Tensor, low_res: Tensor | None, aug: Tensor | None) -> None:
        if not (low_res is not None) == (aug is not None) == self.config.low_res:
            kind = "a super-resolution" if self.config.low_res else "a base"
            raise ValueError(f"this is {kind} network: give low_res and aug to the former only")
        factor = self.config.factor
        if x.shape[-2] % factor or x.shape[-1] % factor:
            height, width = x.shape[-2:]
            raise ValueError(f"{height}x{width} images do not divide by the network's {factor}")


def _paths(config: UNetConfig) -> tuple[list[Step], list[UNetBlock], list[Step]]:
    """Build encoder, middle and decoder."""
    if config.resample == "convolution":
        return _strided_encoder(config), [], _strided_decoder(config)
    width, kind = config.channels[-1], config.attention[-1]
    middle = [
        UNetBlock(ResBlock(width, width, config), attention_for(width, kind, config)),
        UNetBlock(ResBlock(width, width, config)),
    ]
    return _residual_encoder(config), middle, _residual_decoder(config)


def _residual_encoder(config: UNetConfig) -> list[Step]:
    """ADM's way down: every block leaves a skip, those that change the resolution too."""
    steps: list[Step] = []
    width = config.channels[0]
    levels = zip(config.channels, config.blocks, config.attention, strict=True)
    for level, (channels, blocks, kind) in enumerate(levels):
        for _ in range(blocks):
            block = ResBlock(width, channels, config)
            steps.append(Step(UNetBlock(block, attention_for(channels, kind, config)), skip=True))
            width = channels
        if level < len(config.channels) - 1:
            steps.append(Step(UNetBlock(ResBlock(width, width, config, "down")), skip=True))
    return steps


def _residual_decoder(config: UNetConfig) -> list[Step]:
    """ADM's way up: every block takes a skip, the last in first; one block more per level."""
    steps: list[Step] = []
    skips = _residual_skip_widths(config)
    width = config.channels[-1]
    for level in reversed(range(len(config.channels))):
        channels, kind = config.channels[level], config.attention[level]
        for _ in range(config.blocks[level] + 1):
            block = ResBlock(width + skips.pop(), channels, config)
            steps.append(Step(UNetBlock(block, attention_for(channels, kind, config)), skip=True))
            width = channels
        if level > 0:
            steps.append(Step(UNetBlock(ResBlock(width, width, config, "up")), skip=False))
    return steps


def _residual_skip_widths(config: UNetConfig) -> list[int]:
    """Widths of the skips in the order they are left, the input convolution's first."""
    widths = [config.channels[0]]
    for level, (channels, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
        changes_resolution = level < len(config.channels) - 1
        widths += [channels] * (blocks + changes_resolution)
    return widths


def _strided_encoder(config: UNetConfig) -> list[Step]:
    """Build the Efficient U-Net's encoder: each level halves first and pushes one skip at its end.

    The coarsest level leaves none: the way up begins with its output.
    """
    steps: list[Step] = []
    width = config.channels[0]
    for level, channels in enumerate(config.channels):
        steps.append(Step(ConvResample(width, channels, "down"), skip=False))
        units = _level(config, level, channels)
        steps += [Step(unit, skip=False) for unit in units[:-1]]
        steps.append(Step(units[-1], skip=level < len(config.channels) - 1))
        width = channels
    return steps


def _strided_decoder(config: UNetConfig) -> list[Step]:
    """Build the Efficient U-Net's decoder: each level pops one skip at its start, doubles last.

    A last block at full resolution takes the input convolution's, where there is one.
    """
    steps: list[Step] = []
    coarsest = len(config.channels) - 1
    for level in reversed(range(len(config.channels))):
        channels = config.channels[level]
        takes = level < coarsest
        units = _level(config, level, 2 * channels if takes else channels)
        steps.append(Step(units[0], skip=takes))
        steps += [Step(unit, skip=False) for unit in units[1:]]
        finer = config.channels[max(level - 1, 0)]
        steps.append(Step(ConvResample(channels, finer, "up"), skip=False))
    if config.full_resolution_skip:
        first = config.channels[0]
        steps.append(Step(UNetBlock(ResBlock(2 * first, first, config)), skip=True))
    return steps


def _level(config: UNetConfig, level: int, in_channels: int) -> list[UNetBlock]:
    """Build one level of the Efficient U-Net; attention stands behind its last block."""
    channels, last = config.channels[level], config.blocks[level] - 1
    units: list[UNetBlock] = []
    for index in range(config.blocks[level]):
        block = ResBlock(in_channels if index == 0 else channels, channels, config)
        kind = config.attention[level] if index == last else "none"
        units.append(UNetBlock(block, attention_for(channels, kind, config)))
    return units
