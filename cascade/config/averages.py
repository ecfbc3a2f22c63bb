"""Averages of the weights along a run."""

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from cascade.config.base import Count, Frozen

STD: Final = "std-"
"""How the labels of power-function averages begin."""


class AverageConfig(Frozen):
    """An average of the weights; exactly one number says how far back it reaches."""

    half_life: Count | None = Field(
        default=None, description="images after which a weight counts half in an exponential one"
    )
    std: Annotated[float, Field(strict=True, gt=0.0, le=0.28)] | None = Field(
        default=None,
        description="width of a power-function one, relative to the run's length so far (Karras et "
        "al. 2024, section 3.1); any other width can be made from two afterwards",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.half_life is None) == (self.std is None):
            raise ValueError("an average has a half_life or a std; give one of them")
        return self

    @property
    def label(self) -> str:
        """Name of the average in checkpoints and snapshots."""
        return f"half-life-{self.half_life}" if self.std is None else f"{STD}{self.std:g}"


def warmed_up_decay(updates: int) -> float:
    """Return the largest decay of an average after so many updates; it forgets the start."""
    return (1 + updates) / (10 + updates)
