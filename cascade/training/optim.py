"""Optimizers and learning-rate schedules; a schedule is a pure function of the step."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adafactor, AdamW, Optimizer

from cascade.config.optimizer import OptimizerConfig
from cascade.errors import UserError
from cascade.progress import silence


def check_optimizer(config: OptimizerConfig) -> None:
    """Make sure that the optimizer's package is installed."""
    if config.name == "adamw8bit" and find_spec("torchao") is None:
        raise UserError(
            "The optimizer 'adamw8bit' needs the package torchao; install it with "
            "pip install 'dreamcascade[quantized]', or take adamw."
        )


def make_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter],
    undecayed: Iterable[nn.Parameter] = (),
    *,
    compiled: bool = False,
) -> Optimizer:
    """AdamW, or Adafactor as Imagen's base stage was trained with (Imagen section 4.1).

    Args:
        undecayed: those among them that get no weight decay.
        compiled: whether the arithmetic of 8-bit AdamW is compiled.
    """
    still = {id(parameter) for parameter in undecayed}
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in still]}]
    if still:
        kept = [parameter for parameter in trained if id(parameter) in still]
        groups.append({"params": kept, "weight_decay": 0.0})
    if config.name == "adafactor":
        return Adafactor(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    # Fused: one pass over a weight and its moments, about half the time of PyTorch's own choice.
    adamw: Callable[..., Optimizer] = partial(AdamW, fused=True)
    if config.name == "adamw8bit":
        adamw = _adamw_8bit(config, compiled)
    return adamw(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def _adamw_8bit(config: OptimizerConfig, compiled: bool) -> Callable[..., Optimizer]:
    """AdamW whose moments are stored in 8 bits, in blocks of 256 (Dettmers et al. 2022).

    torchao's and not bitsandbytes': its states are tensors that shard and that a distributed
    checkpoint stores to the last bit, where bitsandbytes 0.50 fails on sharded parameters (its
    operators take no DTensor). It has no kernel: it compiles one update for every shape of weight.
    A U-Net has dozens, at seconds each, so that only a run that is compiled anyway does it.
    """
    check_optimizer(config)
    with silence():
        from torchao.optim import AdamW8bit

    class EagerAdamW8bit(AdamW8bit):  # type: ignore[misc]  # published without types
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            with torch.compiler.set_stance("force_eager"):
                loss: float | None = super().step(closure)
            return loss

    kind: Callable[..., Optimizer] = AdamW8bit if compiled else EagerAdamW8bit
    return kind


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group of parameters this rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's: compiled code would keep a number
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `steps`.

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
