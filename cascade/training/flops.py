"""Operations that training takes, counted by PyTorch on tensors that hold nothing."""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade.config.stage import StageConfig
from cascade.config.train import Recomputation
from cascade.data.batch import crop_sides
from cascade.model.example import example_inputs
from cascade.model.layers import set_backend
from cascade.model.recompute import set_recomputation
from cascade.stage import meta_network


@cache
def training_flops(stage: StageConfig, recomputation: Recomputation = "none") -> int:
    """Operations of the forward and backward pass over one row; a multiply-add is two.

    The backward pass takes twice the forward one, for the gradients of inputs and of weights, less
    those of pictures and texts, which nobody asks for.
    """
    network = meta_network(stage).train()
    set_recomputation(network, recomputation)
    set_backend(network, "reference")  # a kernel of ours is not known to PyTorch's counter
    side, _ = crop_sides(stage)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(**example_inputs(stage.unet, 1, side, stage.text.max_length)).sum().backward()
    return int(counter.get_total_flops())
