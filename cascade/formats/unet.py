"""Conversion of diffusers' `unet/config.json` from and to `UNetConfig`, for IF's kind of network.

Both describe the same network; what one cannot say is refused by name, never dropped.
"""

from typing import Any

from cascade.config.unet import UNetConfig
from cascade.formats.settings import Settings

_BLOCKS = {"none": "ResnetDownsampleBlock2D", "joint": "SimpleCrossAttnDownBlock2D"}
_UP_BLOCKS = {"none": "ResnetUpsampleBlock2D", "joint": "SimpleCrossAttnUpBlock2D"}

# What makes a network one of IF's kind; absent, diffusers builds something else.
_KIND = {
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
}
# diffusers' defaults, and the only values with which our network computes the same.
_DEFAULTS: dict[str, Any] = {
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,  # the text's norm has 32 groups whatever this says
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "upcast_attention": False,
}
_READ = {
    "act_fn",
    "addition_embed_type_num_heads",
    "attention_head_dim",
    "block_out_channels",
    "class_embed_type",
    "cross_attention_dim",
    "down_block_types",
    "dropout",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "in_channels",
    "layers_per_block",
    "mid_block_only_cross_attention",
    "mid_block_scale_factor",
    "out_channels",
    "resnet_out_scale_factor",
    "resnet_skip_time_act",
    "sample_size",
    "time_embedding_act_fn",
    "time_embedding_dim",
    "up_block_types",
}
# Of other kinds of blocks: without a meaning here.
_UNUSED = {
    "downsample_padding",
    "reverse_transformer_layers_per_block",
    "transformer_layers_per_block",
    "use_linear_projection",
}


def unet_from_diffusers(file: Settings) -> dict[str, Any]:
    """Read a network's shape from its `unet/config.json`.

    Returns:
        The values of a `UNetConfig`.
    """
    _check_kind(file)
    channels = file.listed("block_out_channels", int)
    activation = file.one_of("act_fn", "silu", "gelu", "silu")
    scale = file.factor("resnet_out_scale_factor")
    file.one_of("mid_block_scale_factor", 1, scale)
    # Activated once in front of the blocks, or by each block: the same numbers.
    once = file.one_of("resnet_skip_time_act", False, False, True)
    file.one_of("time_embedding_act_fn", None, activation if once else None)
    blocks = file.get("layers_per_block", 2)
    width = file.get("time_embedding_dim")
    return {
        "channels": channels,
        "blocks": [blocks] * len(channels) if isinstance(blocks, int) else blocks,
        "attention": _attention(file),
        "head_channels": file.need("attention_head_dim", int),
        "text_width": file.need("encoder_hid_dim", int),
        "context_width": file.need("cross_attention_dim", int),
        "time_width": 4 * channels[0] if width is None else width,
        "pool_heads": file.get("addition_embed_type_num_heads", 64),
        "text_norm": "group",
        "residual_scale": 1 / scale,
        "activation": activation,
        "dropout": file.get("dropout", 0.0),
        "low_res": _low_res(file),
        "learned_variance": file.one_of("out_channels", 4, 3, 6) == 6,
    }


def unet_to_diffusers(config: UNetConfig, size: int) -> dict[str, Any]:
    """Write a network's shape as `unet/config.json`."""
    levels = list(config.attention)
    blocks = list(config.blocks)
    scale = 1.0 if config.residual_scale == 1 else 1 / config.residual_scale
    default_width = config.time_width == 4 * config.channels[0]
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": config.activation,
        "addition_embed_type_num_heads": config.pool_heads,
        "attention_head_dim": config.head_channels,
        "block_out_channels": list(config.channels),
        "class_embed_type": "timestep" if config.low_res else None,
        "cross_attention_dim": config.context_width,
        "down_block_types": [_BLOCKS[kind] for kind in levels],
        "dropout": config.dropout,
        "encoder_hid_dim": config.text_width,
        "encoder_hid_dim_type": "text_proj",
        "in_channels": 6 if config.low_res else 3,
        "layers_per_block": blocks[0] if len(set(blocks)) == 1 else blocks,
        "mid_block_scale_factor": scale,
        "out_channels": 6 if config.learned_variance else 3,
        "resnet_out_scale_factor": scale,
        # As published: stage II activates the conditioning once, stage I in every block.
        "resnet_skip_time_act": config.low_res,
        "sample_size": size,
        "time_embedding_act_fn": config.activation if config.low_res else None,
        "time_embedding_dim": None if default_width else config.time_width,
        "up_block_types": [_UP_BLOCKS[kind] for kind in reversed(levels)],
        **_KIND,
        **_DEFAULTS,
    }


def _check_kind(file: Settings) -> None:
    file.only(_READ | _UNUSED | _KIND.keys() | _DEFAULTS.keys())
    for key, wanted in _KIND.items():
        file.one_of(key, None, wanted)
    for key, wanted in _DEFAULTS.items():
        file.one_of(key, wanted, wanted)
    file.one_of("mid_block_only_cross_attention", None, None, False)
    # Older files name the width alone; diffusers then takes the projection too.
    file.one_of("encoder_hid_dim_type", None, None, "text_proj")


def _attention(file: Settings) -> list[str]:
    kinds = {block: kind for kind, block in _BLOCKS.items()}
    down = file.listed("down_block_types", str)
    # diffusers' middle always attends, ours as its coarsest level does.
    if not set(down) <= set(kinds) or down[-1] != _BLOCKS["joint"]:
        raise file.refusal("down_block_types", f"{' or '.join(kinds)}, the latter last")
    attention = [kinds[block] for block in down]
    file.one_of("up_block_types", None, [_UP_BLOCKS[kind] for kind in reversed(attention)])
    return attention


def _low_res(file: Settings) -> bool:
    channels = file.one_of("in_channels", 4, 3, 6)
    file.one_of("class_embed_type", None, "timestep" if channels == 6 else None)
    return bool(channels == 6)
