"""Settings of the scores of cascades and stages."""

from typing import Final

from pydantic import Field

from cascade.config.base import Factor, Frozen, Rows, Seed, Side
from cascade.config.guidance import Interval
from cascade.config.stage import Precision, SamplerName, Steps

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
    """Settings of the images that are scored."""

    seed: Seed = Field(default=0, description="seed of the first picture; they count")
    batch_size: Rows = Field(default=8, description="pictures worked on at once")
    precision: Precision = Field(
        default="auto",
        description="of the networks' arithmetic; auto is bf16 on a device that has it",
    )


class SubjectScoreConfig(DrawingConfig):
    """Settings of the scores of cascades tuned on a subject."""

    images: int = Field(
        default=6,
        strict=True,
        ge=2,
        le=1000,
        description="pictures of the subject's prompt, and of the class's",
    )
    elsewhere: int = Field(
        default=1,
        strict=True,
        ge=0,
        le=100,
        description="pictures of each prompt that the photos do not show; 0 is none",
    )
    places: tuple[str, ...] = Field(
        default=PLACES, description="prompts that name the subject in a new place"
    )
    changes: tuple[str, ...] = Field(
        default=CHANGES, description="prompts that change its style or colour, or dress it"
    )


class StageScoreConfig(DrawingConfig):
    """Settings of the scores of one stage against true images."""

    images: int = Field(
        default=1000, strict=True, ge=2, le=10**6, description="pictures to draw, at most"
    )
    side: Side | None = Field(
        default=None,
        description="pixels to which super-resolution enlarges; what the stage makes if left out",
    )
    fid: bool = Field(default=True, description="measure a base's FID")
    sampler: SamplerName | None = Field(
        default=None, description="replace the checkpoint's sampler"
    )
    steps: Steps | None = Field(default=None, description="replace its number of steps")
    guidance: Factor | None = Field(default=None, description="replace its guidance weight")
    guidance_interval: Interval | None = Field(
        default=None, description="replace the noise levels, low,high, between which it is on"
    )
