"""How cascades and stages are scored."""

from typing import Final

from pydantic import Field

from cascade.config.base import Factor, Frozen, Rows, Seed, Side
from cascade.config.stage import Precision, SamplerName

PLACES: Final = (
    "a {subject} on the beach",
    "a {subject} in the snow",
    "a {subject} on a wooden table",
    "a {subject} in space",
    "a {subject} in the jungle",
    "a {subject} with a city in the background",
)
CHANGES: Final = (
    "a cartoon of a {subject}",
    "a flat drawing of a {subject}",
    "a purple {subject}",
    "a green {subject}",
    "a {subject} wearing a top hat",
    "a {subject} wearing sunglasses",
)


class DrawingConfig(Frozen):
    """How the pictures that are scored are drawn."""

    seed: Seed = Field(default=0, description="Seed of the first picture; they count.")
    batch_size: Rows = Field(default=8, description="Pictures worked on at once.")
    precision: Precision = Field(
        default="auto",
        description="Of the networks' arithmetic; auto is bf16 on a device that has it.",
    )


class SubjectScoreConfig(DrawingConfig):
    """How cascades that were tuned on a subject are scored."""

    images: int = Field(
        default=6,
        strict=True,
        ge=2,
        le=1000,
        description="Pictures of the subject's prompt, and of the class's.",
    )
    elsewhere: int = Field(
        default=1,
        strict=True,
        ge=0,
        le=100,
        description="Pictures of each prompt that the photos do not show; 0 is none.",
    )
    places: tuple[str, ...] = Field(
        default=PLACES, description="Prompts that name the subject in a new place."
    )
    changes: tuple[str, ...] = Field(
        default=CHANGES, description="Prompts that change its style or colour, or dress it."
    )


class StageScoreConfig(DrawingConfig):
    """How one stage is scored against true pictures."""

    images: int = Field(
        default=1000, strict=True, ge=2, le=10**6, description="Pictures to draw, at most."
    )
    side: Side | None = Field(
        default=None,
        description="Pixels to which super-resolution enlarges; what the stage makes if left out.",
    )
    fid: bool = Field(default=True, description="Measure a base's FID.")
    sampler: SamplerName | None = Field(
        default=None, description="Replace the checkpoint's sampler."
    )
    steps: int | None = Field(
        default=None, strict=True, gt=0, le=1000, description="Replace its number of steps."
    )
    guidance: Factor | None = Field(default=None, description="Replace its guidance weight.")
