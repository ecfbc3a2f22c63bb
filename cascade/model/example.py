"""Inputs of the right shapes for a network that is only looked at: counted, timed, tried."""

import torch
from torch import Tensor

from cascade.config.unet import UNetConfig
from cascade.model.unet import IMAGE_CHANNELS


def example_inputs(config: UNetConfig, rows: int, size: int, tokens: int) -> dict[str, Tensor]:
    """Return a network's arguments by name, finite numbers on the device that is the default.

    Args:
        config: the network.
        rows: of the batch.
        size: side of the pictures, pixels.
        tokens: of the text.
    """
    shape = (rows, IMAGE_CHANNELS, size, size)
    image = torch.linspace(-2, 2, rows * IMAGE_CHANNELS * size**2).reshape(shape)
    t = torch.full((rows,), 500.0)
    inputs = {
        "x": image,
        "t": t,
        "text": torch.zeros(rows, tokens, config.text_width),
        "text_mask": torch.ones(rows, tokens, dtype=torch.bool),
    }
    return inputs | ({"low_res": image, "aug": t} if config.low_res else {})
