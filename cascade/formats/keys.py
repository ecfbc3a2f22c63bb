"""The table of diffusers' tensors and those of ours that they make up, read in both directions.

diffusers keeps an attention layer's projections apart; ours are rows of one matrix, queries, keys
and values in this order. Everything else is the same tensor under another name.

Shapes: `C` channels, `D` width of the text encoder.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cascade.config.unet import UNetConfig
from cascade.model.unet import UNet

_OFFSET = "text_pooling.pool.offset"

_SINGLE = {
    "time_embedding.linear1": "time_embedding.linear_1",
    "time_embedding.linear2": "time_embedding.linear_2",
    "aug_embedding.linear1": "class_embedding.linear_1",
    "aug_embedding.linear2": "class_embedding.linear_2",
    "text_pooling.norm1": "add_embedding.norm1",
    "text_pooling.pool.query": "add_embedding.pool.q_proj",
    "text_pooling.pool.key": "add_embedding.pool.k_proj",
    "text_pooling.pool.value": "add_embedding.pool.v_proj",
    "text_pooling.linear": "add_embedding.proj",
    "text_pooling.norm2": "add_embedding.norm2",
    "text_projection": "encoder_hid_proj",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
_BLOCK = {
    "norm1": "norm1",
    "conv1": "conv1",
    "film": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
_ATTENTION = {
    "norm": ("group_norm",),
    "qkv": ("to_q", "to_k", "to_v"),
    "text_norm": ("norm_cross",),
    "text_kv": ("add_k_proj", "add_v_proj"),
    "out": ("to_out.0",),
}


class Entry(NamedTuple):
    """One tensor of ours and the tensors of diffusers' that it is made of, in order."""

    ours: str
    theirs: tuple[str, ...]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Make our tensor from diffusers'."""
        if self.ours == _OFFSET:
            return parts[0].squeeze(0)
        return torch.cat(list(parts)) if len(parts) > 1 else parts[0]

    def split(self, ours: Tensor) -> dict[str, Tensor]:
        """Split our tensor into diffusers': views by their names."""
        if self.ours == _OFFSET:
            return {self.theirs[0]: ours.unsqueeze(0)}
        return dict(zip(self.theirs, ours.chunk(len(self.theirs)), strict=True))


def meta_tensors(config: UNetConfig) -> Mapping[str, Tensor]:
    """Return our network's tensors on the meta device, by name."""
    with torch.device("meta"):
        return UNet(config).state_dict()


def entries(config: UNetConfig) -> tuple[Entry, ...]:
    """Return the table of a network, one entry for each of our tensors.

    Args:
        config: of DeepFloyd IF's kind: levels change inside residual blocks, attention is joint.
    """
    layers: dict[str, tuple[str, ...]] = {name: (theirs,) for name, theirs in _SINGLE.items()}
    for unit, resnet, attention in _units(config):
        layers |= {f"{unit}.block.{ours}": (f"{resnet}.{name}",) for ours, name in _BLOCK.items()}
        for ours, names in _ATTENTION.items():
            layers[f"{unit}.attention.{ours}"] = tuple(f"{attention}.{name}" for name in names)
    table = []
    for name in meta_tensors(config):
        if name == _OFFSET:
            table.append(Entry(name, ("add_embedding.pool.positional_embedding",)))
            continue
        layer, _, kind = name.rpartition(".")
        table.append(Entry(name, tuple(f"{theirs}.{kind}" for theirs in layers[layer])))
    return tuple(table)


def _units(config: UNetConfig) -> Iterator[tuple[str, str, str]]:
    """Yield our unit, diffusers' residual block and its attention, along all three paths.

    What a unit lacks (an attention, a skip's convolution) is named too; no tensor of ours asks for
    it.
    """
    levels = len(config.channels)
    index = 0
    for level, blocks in enumerate(config.blocks):
        theirs = f"down_blocks.{level}"
        for block in range(blocks):
            yield _unit(f"encoder.{index}", theirs, block)
            index += 1
        if level < levels - 1:
            yield f"encoder.{index}", f"{theirs}.downsamplers.0", ""
            index += 1
    yield _unit("middle.0", "mid_block", 0)
    yield _unit("middle.1", "mid_block", 1)
    index = 0
    for level, blocks in enumerate(reversed(config.blocks)):
        theirs = f"up_blocks.{level}"
        for block in range(blocks + 1):
            yield _unit(f"decoder.{index}", theirs, block)
            index += 1
        if level < levels - 1:
            yield f"decoder.{index}", f"{theirs}.upsamplers.0", ""
            index += 1


def _unit(ours: str, theirs: str, block: int) -> tuple[str, str, str]:
    return ours, f"{theirs}.resnets.{block}", f"{theirs}.attentions.{block}"
