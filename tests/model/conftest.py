"""A small network of every kind, awake: the zero-initialised layers of a new one hide mistakes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cascade.config.unet import UNetConfig
from cascade.model.unet import UNet

BASE = UNetConfig(
    channels=(32, 64),
    blocks=(1, 2),
    attention=("none", "joint"),
    head_channels=16,
    text_width=24,
    context_width=40,
    time_width=48,
    pool_heads=4,
    norm_groups=8,
)
CONFIGS = {
    "base": BASE,
    "self": BASE.model_copy(update={"attention": ("none", "self")}),
    "deepfloyd": BASE.model_copy(
        update={
            "activation": "gelu",
            "learned_variance": True,
            "low_res": True,
            "residual_scale": 0.7071,
            "text_norm": "group",
        }
    ),
    "efficient": BASE.model_copy(
        update={
            "attention": ("none", "cross"),
            "blocks": (2, 1),
            "low_res": True,
            "resample": "convolution",
            "skip_scale": 2**-0.5,
        }
    ),
    "efficient base": BASE.model_copy(
        update={"full_resolution_skip": True, "resample": "convolution", "skip_scale": 2**-0.5}
    ),
    "efficient, full-resolution skip": BASE.model_copy(
        update={
            "attention": ("none", "cross"),
            "full_resolution_skip": True,
            "low_res": True,
            "resample": "convolution",
        }
    ),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> UNetConfig:
    """Every kind of network in turn."""
    return CONFIGS[request.param]


@pytest.fixture
def configs() -> dict[str, UNetConfig]:
    """The small configurations by name."""
    return CONFIGS


@pytest.fixture
def awake() -> Callable[[UNetConfig], UNet]:
    """Build a network whose zero-initialised weights have been drawn at random."""

    def build(config: UNetConfig) -> UNet:
        torch.manual_seed(0)
        network = UNet(config).eval()
        for parameter in network.parameters():
            if not parameter.any() and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        return network

    return build


@pytest.fixture
def inputs() -> Callable[..., dict[str, Tensor]]:
    """Draw a network's inputs: the last rows of the text are padding, more in every sample."""

    def draw(
        config: UNetConfig, batch: int = 2, height: int = 8, width: int = 8, tokens: int = 5
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        length = torch.arange(batch, 0, -1)[:, None]
        drawn = {
            "x": torch.randn(batch, 3, height, width, generator=generator),
            "t": torch.linspace(20.0, 980.0, batch),
            "text": torch.randn(batch, tokens, config.text_width, generator=generator),
            "text_mask": torch.arange(tokens)[None] < length,
        }
        if config.low_res:
            drawn["low_res"] = torch.randn(batch, 3, height, width, generator=generator)
            drawn["aug"] = torch.linspace(0.0, 400.0, batch)
        return drawn

    return draw
