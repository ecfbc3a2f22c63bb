"""The block semantics against diffusers' U-Net, the public reading of DeepFloyd IF."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascade.config.unet import UNetConfig
from cascade.model.blocks import Unit
from cascade.model.unet import UNet

diffusers = pytest.importorskip("diffusers")

TEXT_WIDTH = 32
CONTEXT_WIDTH = 64


def stage_one() -> tuple[UNetConfig, dict[str, Any]]:
    """IF's first stage in small: three attention levels of four become one of two."""
    ours = UNetConfig(
        channels=(32, 64),
        blocks=(2, 2),
        attention=("none", "joint"),
        head_channels=16,
        text_width=TEXT_WIDTH,
        context_width=CONTEXT_WIDTH,
        time_width=128,
        pool_heads=4,
        text_norm="group",
        activation="gelu",
        learned_variance=True,
    )
    theirs = _diffusers_config(ours) | {"layers_per_block": 2}
    return ours, theirs


def stage_two() -> tuple[UNetConfig, dict[str, Any]]:
    """IF's second stage in small: uneven levels, the augmentation's embedding, scaled residuals."""
    scale = 1 / math.sqrt(2)
    base, _ = stage_one()
    ours = base.model_copy(
        update={
            "channels": (32, 64, 96),
            "blocks": (1, 1, 2),
            "attention": ("none", "none", "joint"),
            "time_width": 256,
            "low_res": True,
            "residual_scale": scale,
        }
    )
    theirs = _diffusers_config(ours) | {
        "class_embed_type": "timestep",
        "in_channels": 6,
        "layers_per_block": [1, 1, 2],
        "mid_block_scale_factor": 1 / scale,
        "resnet_out_scale_factor": 1 / scale,
        "resnet_skip_time_act": True,
        "time_embedding_act_fn": "gelu",
        "time_embedding_dim": 256,
    }
    return ours, theirs


def _diffusers_config(ours: UNetConfig) -> dict[str, Any]:
    plain = [kind == "none" for kind in ours.attention]
    return {
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": ours.pool_heads,
        "attention_head_dim": ours.head_channels,
        "block_out_channels": list(ours.channels),
        "cross_attention_dim": ours.context_width,
        "cross_attention_norm": "group_norm",
        "down_block_types": [
            "ResnetDownsampleBlock2D" if p else "SimpleCrossAttnDownBlock2D" for p in plain
        ],
        "up_block_types": [
            "ResnetUpsampleBlock2D" if p else "SimpleCrossAttnUpBlock2D" for p in plain[::-1]
        ],
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "encoder_hid_dim": ours.text_width,
        "encoder_hid_dim_type": "text_proj",
        "in_channels": 3,
        "out_channels": 6,
        "norm_num_groups": ours.norm_groups,
        "resnet_time_scale_shift": "scale_shift",
    }


def _copy(target: nn.Module, source: nn.Module) -> None:
    """Copy a layer, squeezing nothing: the shapes must agree."""
    target.load_state_dict(source.state_dict(), strict=True)


def _join(target: nn.Linear, *sources: nn.Linear) -> None:
    target.load_state_dict(
        {
            name: torch.cat([source.state_dict()[name] for source in sources])
            for name in ("weight", "bias")
        }
    )


def _copy_unit(unit: Unit, resnet: Any, attention: Any | None) -> None:
    block = unit.block
    pairs = {
        "norm1": block.norm1, "conv1": block.conv1, "time_emb_proj": block.film,
        "norm2": block.norm2, "conv2": block.conv2,
    }  # fmt: skip
    for name, layer in pairs.items():
        _copy(layer, getattr(resnet, name))
    assert (block.skip is None) == (resnet.conv_shortcut is None)
    if block.skip is not None:
        _copy(block.skip, resnet.conv_shortcut)
    assert (unit.attention is None) == (attention is None)
    if unit.attention is not None and attention is not None:
        _copy(unit.attention.norm, attention.group_norm)
        _copy(unit.attention.text_norm, attention.norm_cross)
        _join(unit.attention.qkv, attention.to_q, attention.to_k, attention.to_v)
        _join(unit.attention.text_kv, attention.add_k_proj, attention.add_v_proj)
        _copy(unit.attention.out, attention.to_out[0])


def _pairs(blocks: Any, resamplers: str) -> list[tuple[Any, Any]]:
    """All (resnet, attention) of diffusers' blocks in the order in which they run."""
    pairs: list[tuple[Any, Any]] = []
    for block in blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        pairs += zip(block.resnets, attentions, strict=True)
        pairs += [(resnet, None) for resnet in getattr(block, resamplers) or []]
    return pairs


def copy_weights(ours: UNet, theirs: Any) -> None:
    """Give our network every tensor of diffusers' one."""
    embeddings = [(ours.time_embedding, theirs.time_embedding)]
    if ours.aug_embedding is not None:
        embeddings.append((ours.aug_embedding, theirs.class_embedding))
    for target, source in embeddings:
        _copy(target.linear1, source.linear_1)
        _copy(target.linear2, source.linear_2)
    pooling, add = ours.text_pooling, theirs.add_embedding
    pooling.pool.offset.data.copy_(add.pool.positional_embedding[0])
    for target, source in (
        (pooling.norm1, add.norm1), (pooling.linear, add.proj), (pooling.norm2, add.norm2),
        (pooling.pool.query, add.pool.q_proj), (pooling.pool.key, add.pool.k_proj),
        (pooling.pool.value, add.pool.v_proj), (ours.text_projection, theirs.encoder_hid_proj),
        (ours.conv_in, theirs.conv_in), (ours.norm_out, theirs.conv_norm_out),
        (ours.conv_out, theirs.conv_out),
    ):  # fmt: skip
        _copy(target, source)
    mid = theirs.mid_block
    paths = (
        (ours.encoder, _pairs(theirs.down_blocks, "downsamplers")),
        (ours.middle, list(zip(mid.resnets, [*mid.attentions, None], strict=True))),
        (ours.decoder, _pairs(theirs.up_blocks, "upsamplers")),
    )
    for units, pairs in paths:
        for unit, (resnet, attention) in zip(units, pairs, strict=True):
            _copy_unit(unit, resnet, attention)


def _inputs(config: UNetConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "x": torch.randn(2, 3, 16, 16, generator=generator),
        "t": torch.tensor([17.0, 903.0]),
        "text": torch.randn(2, 7, config.text_width, generator=generator),
        "text_mask": torch.ones(2, 7, dtype=torch.bool),
    }
    if config.low_res:
        inputs["low_res"] = torch.randn(2, 3, 16, 16, generator=generator)
        inputs["aug"] = torch.tensor([250.0, 4.0])
    return inputs


def _reference(theirs: Any, inputs: dict[str, Tensor]) -> Tensor:
    x = inputs["x"]
    if "low_res" in inputs:
        x = torch.cat([x, inputs["low_res"]], dim=1)
    out: Tensor = theirs(
        x, inputs["t"], inputs["text"], class_labels=inputs.get("aug"), return_dict=False
    )[0]
    return out


@pytest.mark.parametrize("stage", [stage_one, stage_two])
def test_agrees_with_diffusers(stage: Any) -> None:
    config, settings = stage()
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(**settings).eval()
    ours = UNet(config).eval()
    copy_weights(ours, theirs)
    counts = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    assert counts[0] == counts[1]
    inputs = _inputs(config)
    with torch.no_grad():
        expected, actual = _reference(theirs, inputs), ours(**inputs)
    assert expected.std() > 0.1
    # fp32 through some thirty layers, in another order of the same sums.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
