"""Networks with the same weights, called on the same input: ours in several ways, and diffusers'.

All get what makes them fastest: weights and pictures in channels_last, diffusers its processor for
`scaled_dot_product_attention`. A provider is one function and one entry of `PROVIDERS`.

Shapes: `B` pictures, `H W` pixels, `L` text tokens, `D` text width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from cascade.config.stage import StageConfig
from cascade.config.unet import UNetConfig
from cascade.diffusion.denoiser import Network
from cascade.errors import UserError
from cascade.formats.export import check_expressible
from cascade.formats.keys import entries
from cascade.formats.unet import unet_to_diffusers
from cascade.model.layers import set_backend
from cascade.model.unet import UNet
from cascade_kernels.names import Backend

Weights: TypeAlias = Mapping[str, Tensor]
"""Of a stage's network, by our names."""


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
    def draw(cls, config: StageConfig, rows: int, device: torch.device) -> "Inputs":
        """Draw N(0, 1) pictures and texts of full length, as engines pad them."""
        generator = torch.Generator().manual_seed(1)

        def normal(*sides: int) -> Tensor:
            return torch.randn(rows, *sides, generator=generator).to(device)

        image, length = (3, config.size, config.size), config.text.max_length
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
        parts = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value[:rows] for name, value in parts.items()})

    def call(self, network: Callable[..., Tensor]) -> Tensor:
        """Predict, B C H W."""
        return network(self.x, self.t, self.text, self.mask, self.low_res, self.aug)


class DiffusersNetwork(nn.Module):
    """diffusers' `UNet2DConditionModel` behind our network's signature.

    Raises:
        UserError: diffusers is not installed, or has no network of this kind.
    """

    def __init__(self, config: StageConfig, weights: Weights) -> None:
        super().__init__()
        check_expressible(config)
        try:
            from diffusers import UNet2DConditionModel
        except ImportError:
            raise UserError(
                "To compare with diffusers, install it: pip install diffusers; or leave it out of "
                "--against."
            ) from None
        kind: Any = UNet2DConditionModel  # published without types
        self.network = kind.from_config(unet_to_diffusers(config.unet, config.size))
        parts = (entry.split(weights[entry.ours]) for entry in entries(config.unet))
        self.network.load_state_dict({name: part for of in parts for name, part in of.items()})

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as ours does; every token is read, which is IF's convention."""
        image = x if low_res is None else torch.cat([x, low_res], dim=1)
        image = image.contiguous(memory_format=torch.channels_last)
        out = self.network(image, t, text, class_labels=aug, return_dict=False)[0]
        answer: Tensor = out
        return answer


@dataclass(frozen=True)
class Made:
    """A network and how it is to be run: a module in float32, or an engine as it is."""

    network: nn.Module | Network
    compiled: bool = False
    proven: bool = False  # by the gate of its export


Maker: TypeAlias = Callable[[StageConfig, Weights], Made]


def ours(
    config: StageConfig, weights: Weights, backend: Backend = "reference", compiled: bool = False
) -> Made:
    """Our network, with the kernels or without."""
    network = UNet(config.unet)
    network.load_state_dict(weights)
    set_backend(network, backend)
    return Made(network, compiled)


def diffusers(config: StageConfig, weights: Weights, compiled: bool = False) -> Made:
    """diffusers' network."""  # noqa: D403
    return Made(DiffusersNetwork(config, weights), compiled)


PROVIDERS: Final[Mapping[str, Maker]] = {
    "eager": ours,
    "compiled": partial(ours, compiled=True),
    "triton": partial(ours, backend="triton"),
    "triton-compiled": partial(ours, backend="triton", compiled=True),
    "diffusers": diffusers,
    "diffusers-compiled": partial(diffusers, compiled=True),
}


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
        low_res = low_res.model_copy(update={"size": size * low_res.size // config.size})
    return config.model_copy(update={"unet": unet, "size": size or config.size, "low_res": low_res})


def known(names: str, providers: Mapping[str, object]) -> list[str]:
    """Read a list of providers, such as `eager,diffusers`."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen or any(name not in providers for name in chosen):
        raise UserError(f"--against {names} is no list of {', '.join(providers)}; mend it.")
    return chosen
