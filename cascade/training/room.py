"""Check that a network can be trained in a device's memory at all."""

from collections.abc import Iterable

import torch

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.environment import device_memory
from cascade.errors import UserError
from cascade.model.memory import FLOAT32, optimizer_bytes
from cascade.stage import meta_network


def require_room(runs: Iterable[tuple[StageConfig, TrainConfig]]) -> None:
    """Refuse to train what surely does not fit: weights, gradients and moments exceed all memory.

    Activations come on top of it (`cascade info --memory`).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = device_memory(device)
    for stage, run in runs:
        shapes = [parameter.shape for parameter in meta_network(stage).parameters()]
        weights = FLOAT32 * sum(shape.numel() for shape in shapes)
        averages = 0 if run.ema_decay is None else 1
        needed = (2 + averages) * weights + optimizer_bytes(shapes, run.optimizer.name)
        if needed > memory:
            raise UserError(
                f"Stage '{stage.name}' takes {needed / 2**30:.1f} GiB to be trained (weights, "
                f"gradients, {run.optimizer.name}), and {device} has {memory / 2**30:.1f} GiB in "
                "all; take a smaller network, optimizer adafactor, or a larger machine."
            )
