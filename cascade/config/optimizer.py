"""The optimizer and its learning rate."""

from typing import Annotated, Literal

from pydantic import Field

from cascade.config.base import Frozen

OptimizerName = Literal["adamw", "adamw8bit", "adafactor"]
LrSchedule = Literal["constant", "linear", "cosine"]
Decay = Annotated[float, Field(strict=True, ge=0.0, lt=1.0)]


class OptimizerConfig(Frozen):
    """The optimizer and its learning-rate schedule, counted in optimizer steps."""

    name: OptimizerName = Field(default="adamw", description="which optimizer")
    learning_rate: float = Field(
        default=1e-4, strict=True, gt=0.0, le=10.0, description="the highest learning rate"
    )
    betas: tuple[Decay, Decay] = Field(
        default=(0.9, 0.999), description="decays of the means of gradients and of their squares"
    )
    eps: float = Field(
        default=1e-8,
        strict=True,
        gt=0.0,
        le=1.0,
        description="added to the root of the mean of squares",
    )
    weight_decay: float = Field(
        default=0.0,
        strict=True,
        ge=0.0,
        le=10.0,
        description="share of the rate by which weights shrink",
    )
    schedule: LrSchedule = Field(
        default="constant", description="how the rate falls to 0, if it does"
    )
    warmup_steps: int = Field(
        default=0,
        strict=True,
        ge=0,
        le=10**9,
        description="steps in which the rate rises from 0",
    )
    max_grad_norm: float = Field(
        default=1.0, strict=True, gt=0.0, le=1e9, description="longer gradients are cut to it"
    )
