"""Settings of `cascade train` for all stages of a cascade."""

from pathlib import Path

from pydantic import Field

from cascade.config.base import Frozen
from cascade.config.stage import RecipeName


class StageRun(Frozen):
    """One stage's run."""

    config: Path = Field(description="its file of 'cascade train', as seen from this one")
    overrides: tuple[str, ...] = Field(default=(), description="what is set in it, as by --set")


class CascadeRunConfig(Frozen):
    """`cascade train CASCADE`: its stages one after another or side by side, and their cascade."""

    stages: tuple[StageRun, ...] = Field(min_length=1, description="their runs, base first")
    output: Path = Field(description="gets the runs and, at the end, the cascade")
    side_by_side: bool = Field(
        default=False,
        description="train all stages at once, each on its part of the GPUs or of the CPU's cores",
    )
    recipe: RecipeName = Field(
        default="paper", description="the preset with which 'cascade dreambooth' begins"
    )
    licence: str | None = Field(
        default=None, description="of the weights; what the stages state if left out"
    )
