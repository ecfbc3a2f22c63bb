"""Our U-Net and diffusers' with the same weights, called on the same input.

Both get what makes them fastest: weights and pictures in channels_last, diffusers its processor for
`scaled_dot_product_attention`, evaluation mode throughout, since DeepFloyd IF has no dropout.

Shapes: `B` pictures, `C H W` channels, height and width, `L` text tokens, `D` text width.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.stage import StageConfig
from cascade.config.unet import UNetConfig
from cascade.formats.keys import entries
from cascade.formats.unet import unet_to_diffusers
from cascade.model.backend import set_backend
from cascade.model.unet import UNet
from cascade_kernels.names import Backend

Mode = Literal["sampling", "training"]
Precision = Literal["fp32", "bf16"]
Run = Callable[[], Tensor]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_TOKENS = 77


@dataclass(frozen=True)
class Shape:
    """A network and the pictures it is run on.

    Attributes:
        name: the published network's, with its first width where that was changed.
        config: of DeepFloyd IF's kind.
        size: side of the pictures, pixels.
    """

    name: str
    config: UNetConfig
    size: int


def published(name: str) -> Shape:
    """One of the networks of `configs`, at its own size."""
    config = StageConfig.read(CONFIGS / f"{name}.toml")
    return Shape(name, config.unet, config.size)


def narrowed(name: str, width: int, size: int) -> Shape:
    """A published network with fewer channels, heads of 32 and the text of a T5-Large."""
    config = published(name).config
    changes = {
        "channels": tuple(width * channels // config.channels[0] for channels in config.channels),
        "head_channels": 32,
        "text_width": 1024,
        "context_width": 4 * width,
        "time_width": 4 * width,
        "pool_heads": 16,
    }
    narrow = UNetConfig.model_validate(config.model_dump() | changes)
    return Shape(f"{name} at width {width}", narrow, size)


@dataclass(frozen=True)
class Inputs:
    """A batch: x and low_res, B 3 H W; t and aug, B; text, B L D, all of whose tokens count."""

    x: Tensor
    t: Tensor
    text: Tensor
    low_res: Tensor | None
    aug: Tensor | None

    @classmethod
    def draw(cls, shape: Shape, rows: int, device: torch.device) -> "Inputs":
        """Draw N(0, 1) pictures and text."""
        generator = torch.Generator(device).manual_seed(1)

        def normal(*sides: int) -> Tensor:
            return torch.randn(rows, *sides, generator=generator, device=device)

        image, low_res = normal(3, shape.size, shape.size), None
        times = torch.linspace(20, 980, rows, device=device)
        if shape.config.low_res:
            low_res = normal(3, shape.size, shape.size)
        text = normal(_TOKENS, shape.config.text_width)
        return cls(image, times, text, low_res, None if low_res is None else times)

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same with pictures and text in another type."""
        low_res = None if self.low_res is None else self.low_res.to(dtype)
        return Inputs(self.x.to(dtype), self.t, self.text.to(dtype), low_res, self.aug)

    def rows(self, count: int) -> "Inputs":
        """The first rows."""
        low_res, aug = (None if v is None else v[:count] for v in (self.low_res, self.aug))
        return Inputs(self.x[:count], self.t[:count], self.text[:count], low_res, aug)


@dataclass(frozen=True)
class Provider:
    """One way to run the network.

    Attributes:
        network: ours or diffusers'.
        compiled: whether `torch.compile` prepares it.
        backend: of our operations; has no meaning for diffusers.
    """

    network: nn.Module
    compiled: bool = False
    backend: Backend = "auto"

    def prepared(self, mode: Mode, precision: Precision) -> nn.Module:
        """A copy as it is run: sampling in bf16 converts the weights, training leaves it to
        autocast, as training runs do.
        """  # noqa: D205
        network = copy.deepcopy(self.network)
        set_backend(network, self.backend)
        if precision == "bf16" and mode == "sampling":
            network = network.bfloat16()
        if self.compiled:
            network.compile(dynamic=False)
        return network


def pair(shape: Shape, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Build our network and diffusers' with the same random weights, none of them zero."""
    import diffusers

    settings = unet_to_diffusers(shape.config, shape.size)
    del settings["_class_name"]
    torch.manual_seed(0)
    with device:
        theirs: Any = diffusers.UNet2DConditionModel(**settings)  # type: ignore[no-untyped-call]
        ours = UNet(shape.config)
    weights = theirs.state_dict()
    ours.load_state_dict(
        {
            entry.ours: entry.join([weights[name] for name in entry.theirs])
            for entry in entries(shape.config)
        }
    )
    last: dict[str, Any] = {"memory_format": torch.channels_last}
    return ours.eval().to(**last), theirs.eval().to(**last)


def call(network: nn.Module, given: Inputs) -> Tensor:
    """Predict, B 6 H W."""
    out: Tensor
    if isinstance(network, UNet):
        seen = torch.ones(given.text.shape[:2], dtype=torch.bool, device=given.text.device)
        out = network(given.x, given.t, given.text, seen, given.low_res, given.aug)
        return out
    x = given.x if given.low_res is None else torch.cat([given.x, given.low_res], dim=1)
    x = x.contiguous(memory_format=torch.channels_last)
    out = network(x, given.t, given.text, class_labels=given.aug, return_dict=False)[0]
    return out


def step(network: nn.Module, given: Inputs, mode: Mode, precision: Precision) -> Run:
    """One call without gradients, or a call, the mean square and the backward pass."""
    if mode == "sampling":
        inputs = given.to(torch.bfloat16) if precision == "bf16" else given
        return torch.no_grad()(lambda: call(network, inputs))
    target = torch.randn_like(given.x).repeat(1, 2, 1, 1)

    def train() -> Tensor:
        with torch.autocast(given.x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = call(network, given)
        loss = F.mse_loss(out.float(), target)
        loss.backward()
        network.zero_grad()
        return out.detach()

    return train
