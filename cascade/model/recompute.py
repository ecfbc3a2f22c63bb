"""Blocks whose activations are computed again in the backward pass instead of being kept.

Chen et al. 2016. What is recomputed gives the same numbers, so the gradients are the same.
"""

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from cascade.config.train import Recomputation

# What a selective block keeps: results that took most of its arithmetic. Norms, activations,
# changes of resolution and sums are cheap and are most of what there is to keep.
_COSTLY: Final = frozenset(
    {
        torch.ops.aten.convolution.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
_COSTLY_OF_OURS: Final = "cascade::joint_attention"


class Block(nn.Module):
    """A unit of the network: recomputed, compiled and sharded as a whole.

    Attributes:
        recomputation: what of it is computed again; may be changed at any time.
    """

    recomputation: Recomputation = "none"

    def forward(self, x: Tensor, *conditions: Any) -> Tensor:
        """Run the block; see `run`."""
        if self.recomputation == "none" or not (self.training and torch.is_grad_enabled()):
            return self.run(x, *conditions)
        keeping: dict[str, Any] = (
            {"context_fn": _SELECTIVE} if self.recomputation == "selective" else {}
        )
        out: Tensor = checkpoint(self.run, x, *conditions, use_reentrant=False, **keeping)
        return out

    def run(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map an image under its conditions to the next one."""
        raise NotImplementedError


def set_recomputation(network: nn.Module, recomputation: Recomputation) -> None:
    """Choose what every block of a network computes again."""
    for module in network.modules():
        if isinstance(module, Block):
            module.recomputation = recomputation


def _policy(context: object, operator: Any, *args: object, **kwargs: object) -> CheckpointPolicy:
    if operator in _COSTLY or operator.name() == _COSTLY_OF_OURS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_SELECTIVE: Final = partial(create_selective_checkpoint_contexts, _policy)
