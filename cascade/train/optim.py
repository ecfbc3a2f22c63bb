"""Optimizers and learning-rate schedules; a schedule is a pure function of the step."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import Adafactor, AdamW, Optimizer

from cascade.config.train import OptimizerConfig


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """AdamW, or Adafactor as Imagen's base stage was trained with (Imagen section 4.1)."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if config.name == "adafactor":
        return Adafactor(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    return AdamW(
        trained,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`.

    A linear warm-up, then constant, or falling to zero along a line or half a cosine.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.learning_rate * (1.0 - progress)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate
