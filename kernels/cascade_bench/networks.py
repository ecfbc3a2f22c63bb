"""Networks to be timed, the batch that they are called on, and weights for them.

Shapes: `B` pictures, `H W` pixels, `L` text tokens, `D` text width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.config.unet import UNetConfig
from cascade.diffusion.denoiser import Network
from cascade.model.unet import UNet
from cascade_bench.timing import Run
from cascade_kernels.names import Backend

Weights: TypeAlias = Mapping[str, Tensor]
"""Of a stage's network, by our names."""
Compilation = Literal["default", "reduce-overhead"]
"""Modes of torch.compile."""


@dataclass(frozen=True)
class Inputs:
    """A batch: x and low_res, B 3 H W; t and aug, B; text, B L D; mask, B L."""

    x: Tensor
    t: Tensor
    text: Tensor
    mask: Tensor
    low_res: Tensor | None
    aug: Tensor | None

    @classmethod
    def draw(
        cls, config: StageConfig, rows: int, device: torch.device, side: int | None = None
    ) -> "Inputs":
        """Draw N(0, 1) pictures and texts of full length, as engines pad them.

        Args:
            side: of the pictures, if another than the stage's.
        """
        generator = torch.Generator().manual_seed(1)

        def normal(*sides: int) -> Tensor:
            return torch.randn(rows, *sides, generator=generator).to(device)

        image, length = (3, side or config.size, side or config.size), config.text.max_length
        times = torch.linspace(20, 980, rows, device=device)
        x, text = normal(*image), normal(length, config.unet.text_width)
        low_res = normal(*image) if config.low_res else None
        mask = torch.ones(rows, length, dtype=torch.bool, device=device)
        return cls(x, times, text, mask, low_res, None if low_res is None else times)

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Return the same with pictures and text in another type."""
        low_res = None if self.low_res is None else self.low_res.to(dtype)
        return replace(self, x=self.x.to(dtype), text=self.text.to(dtype), low_res=low_res)

    def first(self, rows: int) -> "Inputs":
        """Return the first rows."""
        return self._each(lambda value: value[:rows])

    def on(self, device: torch.device) -> "Inputs":
        """Return the same on another device."""
        return self._each(lambda value: value.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        parts = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: change(value) for name, value in parts.items()})

    def call(self, network: Callable[..., Tensor]) -> Tensor:
        """Predict, B C H W."""
        return network(self.x, self.t, self.text, self.mask, self.low_res, self.aug)


@dataclass(frozen=True)
class Training:
    """What a step trains on, and how."""

    stage: StageConfig
    run: TrainConfig
    inputs: Inputs

    @property
    def half(self) -> bool:
        """Whether the arithmetic is in bfloat16."""
        return self.run.precision == "bf16"


@dataclass(frozen=True)
class Made:
    """A network and how it is to be run: a module in float32, or an engine as it is.

    Attributes:
        step: makes its training step; an engine has none.
        compiled: torch.compile's mode.
        backend: of our network.
        comparable: whether it answers as ours does; an engine in eight bits does not, which its
            export has proven, nor does a network of another shape.
    """

    network: nn.Module | Network
    step: "Callable[[Made, Training], Run] | None" = None
    compiled: Compilation | None = None
    backend: Backend = "auto"
    comparable: bool = True


Maker: TypeAlias = Callable[[StageConfig, Weights], Made]


def random_weights(unet: UNetConfig) -> dict[str, Tensor]:
    """Draw every parameter: a network of zeros draws less power and runs faster than a trained one.

    The last convolution is kept small: what it predicts would be magnified by a sampler's first
    step, where noise is thousands of times larger than the picture, and its rounding with it.
    """
    torch.manual_seed(0)
    network = UNet(unet)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                gain = 0.02 if name == "conv_out.weight" else 0.5
                parameter.normal_(std=gain / math.sqrt(parameter[0].numel()))
    return dict(network.state_dict())


def narrowed(config: StageConfig, width: int | None, size: int | None) -> StageConfig:
    """Return a published stage with fewer channels, heads of 32 and the text of a T5-Large."""
    unet = config.unet
    if width is not None:
        change = {
            "channels": tuple(width * each // unet.channels[0] for each in unet.channels),
            "head_channels": 32,
            "text_width": 1024,
            "context_width": 4 * width,
            "time_width": 4 * width,
            "pool_heads": 16,
        }
        unet = UNetConfig.parse(unet.model_dump() | change, f"--width {width}")
    low_res = config.low_res
    if size is not None and low_res is not None:
        sides = {"size": size * low_res.size // config.size, "crop": None}
        low_res = low_res.model_copy(update=sides)
    return config.model_copy(update={"unet": unet, "size": size or config.size, "low_res": low_res})
