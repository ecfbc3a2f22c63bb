"""Inputs of the right shapes for a network that is only looked at: counted, timed, tried."""

import torch
from torch import Tensor

from cascade.config.unet import UNetConfig
from cascade.model.unet import IMAGE_CHANNELS


def example_inputs(
    config: UNetConfig, rows: int, size: int | tuple[int, int], tokens: int
) -> dict[str, Tensor]:
    """Return a network's arguments by name, finite numbers on the device that is the default.

    Args:
        size: H = W of the pictures, or (H, W), pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    shape = (rows, IMAGE_CHANNELS, height, width)
    image = torch.linspace(-2, 2, rows * IMAGE_CHANNELS * height * width).reshape(shape)
    t = torch.full((rows,), 500.0)
    inputs = {
        "x": image,
        "t": t,
        "text": torch.zeros(rows, tokens, config.text_width),
        "text_mask": torch.ones(rows, tokens, dtype=torch.bool),
    }
    # Of their own: a tracer reads one argument where the same tensor is given for two.
    return inputs | ({"low_res": image.clone(), "aug": t.clone()} if config.low_res else {})
