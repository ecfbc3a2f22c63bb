"""The settings of the U-Net: one vocabulary for the base and every super-resolution network."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from cascade.config.base import Frozen, Positive, Width

LevelAttention = Literal["none", "self", "cross", "joint"]
"""What the image tokens of one level attend to: nothing, themselves, the text, or both at once."""

Activation = Literal["silu", "gelu"]


class UNetConfig(Frozen):
    """The shape of one U-Net, from its finest level to its coarsest.

    The defaults are those of Imagen's base network (Saharia et al. 2022, appendix F.1), apart from
    the sizes, which have none.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    channels: tuple[Width, ...] = Field(min_length=1, max_length=8)
    """Width of each level; the first is also the width of the timestep's sinusoids."""

    blocks: tuple[Annotated[int, Field(strict=True, gt=0, le=16)], ...]
    """Residual blocks of each level on the way down. With `resample = "residual"` the way up has
    one more per level, since every block and every change of resolution hands over a skip."""

    attention: tuple[LevelAttention, ...]
    """Attention of each level. "joint" puts the text's keys in front of the image's in one softmax
    (Imagen, appendix D.3.1); "cross" sees the text alone and leaves the network fully
    convolutional in the image."""

    head_channels: Width = 64
    """Channels of one attention head; the number of heads follows from the level's width."""

    text_width: Width
    """Width of the text encoder's embeddings (4096 for T5-XXL)."""

    context_width: Width
    """Width to which the text is projected once, before the attention layers read it."""

    time_width: Width
    """Width of the conditioning vector: timestep, pooled text and augmentation level, summed."""

    pool_heads: Width = 64
    """Heads of the attention pooling over the text."""

    text_norm: Literal["layer", "group"] = "layer"
    """Norm of the projected text ahead of its keys and values: Imagen's LayerNorm, or DeepFloyd
    IF's GroupNorm, whose statistics run over all tokens: for text whose padding is not masked."""

    resample: Literal["residual", "convolution"] = "residual"
    """Where the resolution changes. "residual": inside residual blocks between levels (BigGAN,
    ADM). "convolution": the Efficient U-Net (Imagen, appendix B.1), where every level begins with
    a strided convolution and ends, on the way up, with an up-sampling one."""

    full_resolution_skip: bool = False
    """With `resample = "convolution"`, whose finest level already is half as large as the picture:
    one more residual block at the picture's own size, over the input convolution's skip. Imagen's
    has none; without it a narrow network cannot carry the pixels' noise through its levels."""

    skip_scale: Positive = 1.0
    """Factor on every skip connection; 1/sqrt(2) in the Efficient U-Net."""

    residual_scale: Positive = 1.0
    """Factor on the sum that leaves a residual block; 0.7071 in DeepFloyd IF's second stage."""

    activation: Activation = "silu"
    """Between convolutions."""

    norm_groups: Width = 32
    """Groups of every GroupNorm."""

    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """Inside residual blocks, while training."""

    low_res: bool = False
    """Super-resolution: three more input channels and the augmentation level's embedding."""

    learned_variance: bool = False
    """Three more output channels: the variance's log-interpolation (Nichol & Dhariwal 2021)."""

    @property
    def factor(self) -> int:
        """The number by which an image's height and width must be divisible."""
        strides = len(self.channels) - (self.resample == "residual")
        return int(2**strides)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not len(self.channels) == len(self.blocks) == len(self.attention):
            raise ValueError("channels, blocks and attention must have one value for each level")
        for width, attention in zip(self.channels, self.attention, strict=True):
            if width % self.norm_groups:
                raise ValueError(f"{width} channels do not divide into {self.norm_groups} groups")
            if attention != "none" and width % self.head_channels:
                raise ValueError(f"{width} channels do not divide into heads of head_channels")
        if self.full_resolution_skip and self.resample != "convolution":
            raise ValueError('full_resolution_skip is there already with resample = "residual"')
        if self.channels[0] % 2:
            raise ValueError("channels[0] must be even: half the sinusoids are cosines")
        if self.text_width % self.pool_heads:
            raise ValueError("text_width must be a multiple of pool_heads")
        if self.text_norm == "group" and self.context_width % self.norm_groups:
            raise ValueError("context_width must be a multiple of norm_groups")
        return self
