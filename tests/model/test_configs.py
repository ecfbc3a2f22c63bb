"""The published networks: their configurations are read, and count what their papers say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.config.folders import read_stage_file
from cascade.config.stage import StageConfig
from cascade.config.unet import UNetConfig
from cascade.model.unet import UNet

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# Exact for DeepFloyd IF where its configuration is published; else what our reading gives.
PARAMETERS = {
    "imagen-base64": 2_305_382_403,  # stated: 2 billion
    "imagen-sr256": 502_501_891,  # stated: 600 million, for levels that are not printed
    "imagen-sr1024": 498_303_491,  # stated: 400 million
    "base64-500m": 546_912_771,  # NeMo's name for it
    "sr256-500m": 450_578_947,
    "sr1024-500m": 446_380_547,
    "if-i-m": 371_605_830,  # stated: 400 million
    "if-i-l": 935_365_830,  # stated: 900 million
    "if-i-xl": 4_304_695_110,  # published: a file of 17.2 GB in fp32
    "if-ii-m": 482_483_334,  # stated: 450 million
    "if-ii-l": 1_243_277_190,  # published: a file of 4.97 GB in fp32
}


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def read(name: str) -> StageConfig:
    return read_stage_file(CONFIGS / f"{name}.toml")


def test_every_published_configuration_is_tested() -> None:
    families = {path.stem for path in CONFIGS.glob("*.toml") if not path.stem.startswith("mini-")}
    assert families == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_shapes(name: str) -> None:
    config = read(name)
    assert config.name == name
    unet = config.unet
    size = config.size if config.low_res is None else config.low_res.crop or config.size
    with torch.device("meta"):
        network = UNet(unet)
        x = torch.empty(1, 3, size, size)
        extra = (x, torch.empty(1)) if unet.low_res else ()
        text = torch.empty(1, config.text.max_length, unet.text_width)
        mask = torch.ones(1, config.text.max_length, dtype=torch.bool)
        out = network(x, torch.empty(1), text, mask, *extra)
    assert count(network) == PARAMETERS[name]
    assert out.shape == (1, 6 if unet.learned_variance else 3, size, size)


def published(name: str) -> dict[str, Any]:
    """The published configuration in diffusers' terms, apart from what both stages share."""
    if name == "if-i-xl":
        return {
            "block_out_channels": [704, 1408, 2112, 2816],
            "cross_attention_dim": 2816,
            "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
            "layers_per_block": 3,
            "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
        }
    return {
        "block_out_channels": [160, 320, 640, 960, 1280],
        "class_embed_type": "timestep",
        "cross_attention_dim": 1280,
        "down_block_types": ["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"] * 2,
        "in_channels": 6,
        "layers_per_block": [2, 2, 3, 5, 5],
        "resnet_skip_time_act": True,
        "time_embedding_act_fn": "gelu",
        "time_embedding_dim": 1280,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"] * 3,
    }


@pytest.mark.parametrize("name", ["if-i-xl", "if-ii-l"])
def test_counts_what_diffusers_counts(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    shared = {
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 64,
        "attention_head_dim": 64,
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj",
        "in_channels": 3,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "out_channels": 6,
        "resnet_time_scale_shift": "scale_shift",
    }
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**(shared | published(name)))
    assert count(theirs) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (1,)}, "one value for each level"),
        ({"channels": (32, 60)}, "groups"),
        ({"head_channels": 48}, "heads"),
        ({"pool_heads": 5}, "pool_heads"),
        ({"text_norm": "group", "context_width": 36}, "context_width"),
    ],
)
def test_impossible_networks_are_refused(
    configs: dict[str, UNetConfig], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig.model_validate(configs["base"].model_dump() | change)
