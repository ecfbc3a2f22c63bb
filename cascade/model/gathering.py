"""What sharded blocks hold while they run, on tensors that hold nothing.

FSDP2 gathers a block's weights when it runs and frees them behind it. This stands in for it beside
`cascade.model.memory`, in one process that holds no shares: tensors of the same sizes come and go
at the same moments.
"""

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from cascade.model.unet import UNet

_FLOAT32: Final = 4  # bytes; gradients are summed so


def gather_blocks(network: UNet, dtype: torch.dtype, *, reshard: bool) -> int:
    """Let every block hold its gathered weights while it runs, and its gradients behind it.

    Forward: the weights and the buffer that they came in. Backward: the weights, the buffer of the
    block that comes next, whole gradients, and what of the block before is being summed.

    Args:
        dtype: that blocks are gathered in.
        reshard: whether weights are freed between a block's forward and backward pass.

    Returns:
        Bytes of the weights around the blocks, which stay gathered in float32.
    """
    blocks: list[nn.Module] = list(network.blocks)
    within = sum(_values(block) for block in blocks)
    for block in blocks:
        for parameter in block.parameters():
            parameter.data = parameter.data.to(dtype)
            if parameter.shape[2:].numel() > 1:
                parameter.register_hook(_copied)
    _Gathered(blocks, dtype.itemsize, reshard)
    return _FLOAT32 * (_values(network) - within)


class _Gathered:
    """The bytes that each block holds, by what they are."""

    def __init__(self, blocks: list[nn.Module], itemsize: int, reshard: bool) -> None:
        self._blocks, self._itemsize, self._reshard = blocks, itemsize, reshard
        self._values = [_values(block) for block in blocks]
        self._weights: dict[int, Tensor] = {}
        self._buffers: dict[int, Tensor] = {}
        self._summed: Tensor | None = None
        for place, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._enter, place), with_kwargs=True)
            block.register_forward_hook(partial(self._leave, place))

    def _enter(
        self, place: int, block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        self._buffers = {place: self._empty(place)}
        self._weights[place] = self._empty(place)
        # A view of its own: its gradient comes last of the block's, and before the next one's.
        image = args[0].view_as(args[0])
        image.register_hook(partial(self._reduce, place))
        return (image, *args[1:]), kwargs

    def _leave(self, place: int, block: nn.Module, args: object, out: Tensor) -> None:
        if self._reshard:
            del self._weights[place]
        out.register_hook(partial(self._regather, place))

    def _regather(self, place: int, gradient: Tensor) -> None:
        self._buffers.pop(place, None)
        if self._reshard:
            self._weights[place] = self._empty(place)
            if place:
                self._buffers = {place - 1: self._empty(place - 1)}

    def _reduce(self, place: int, gradient: Tensor) -> None:
        del self._weights[place]
        self._summed = None
        self._summed = _bytes(_FLOAT32 * self._values[place])
        for parameter in self._blocks[place].parameters():
            parameter.grad = None

    def _empty(self, place: int) -> Tensor:
        return _bytes(self._itemsize * self._values[place])


def _copied(gradient: Tensor) -> None:
    """Hold a filter's gradient twice: it comes channels_last, and sharded weights do not lie so."""
    torch.empty_like(gradient)


def _values(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.uint8)
