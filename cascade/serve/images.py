"""A request for pictures, as the OpenAI Images API has it and as this server extends it.

Every field that the official client can send stands here, taken or refused; what is neither is
refused as unknown.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from cascade.config.base import AtOnce, Factor, Seed, Share
from cascade.config.guidance import Interval
from cascade.config.sample import SampleOptions
from cascade.config.serve import LimitConfig
from cascade.config.stage import AugmentationLevel, SamplerName, StageConfig, Steps
from cascade.errors import UserError
from cascade.request import Request
from cascade.serve.problems import Problem, Unsupported

FileFormat = Literal["png", "jpeg", "webp"]

MOST_PREVIEWS: Final = 3
"""As many as the OpenAI API has."""

_SIZE: Final = re.compile("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")

REFUSED: Final[Mapping[str, str]] = {
    "complexity": "These models plan nothing; leave 'complexity' out.",
    "frame_count": "This server makes no animations; leave 'frame_count' out.",
    "frame_duration_ms": "This server makes no animations; leave 'frame_duration_ms' out.",
    "style": "These models have no styles; write the style into the prompt.",
    "svg": "This server makes no SVG; leave 'svg' out.",
}
"""Fields of the official client that this server refuses, unless they are null."""


def _unicode(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can write and no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("Input should be valid Unicode") from None
    return text


Text = Annotated[str, Field(strict=True), AfterValidator(_unicode)]
Compression = Annotated[int, Field(strict=True, ge=0, le=100)]
Previews = Annotated[int, Field(strict=True, ge=0, le=MOST_PREVIEWS)]

# One value for all stages, or stage name to value.
Guidance: TypeAlias = Factor | dict[str, Factor]
StepCounts: TypeAlias = Steps | dict[str, Steps]
Levels: TypeAlias = Share | dict[str, Share]
Intervals: TypeAlias = Interval | dict[str, Interval]
Samplers: TypeAlias = SamplerName | dict[str, SamplerName]


class ImageRequest(BaseModel):
    """What to draw; null is the same as leaving a field out."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Annotated[Text, Field(min_length=1, description="what to draw")]
    model: Text | None = Field(
        default=None,
        description="which model, as /v1/models lists them; may be left out where there is one",
    )
    n: AtOnce | None = Field(default=None, description="pictures; 1 by default")
    size: Text | None = Field(
        default=None,
        description="WIDTHxHEIGHT as one of the model's stages makes it, or auto for the last's",
    )
    output_format: FileFormat | None = Field(default=None, description="png by default")
    output_compression: Compression | None = Field(
        default=None,
        description="quality of a jpeg or webp file, 0 to 100, which is the default; png has none",
    )
    response_format: Literal["b64_json"] | None = Field(
        default=None, description="pictures stand in the answer; no files are kept to link to"
    )
    stream: Annotated[bool, Field(strict=True)] | None = Field(
        default=None, description="answer with server-sent events; for one picture"
    )
    partial_images: Previews | None = Field(
        default=None, description="previews of each picture while it is drawn"
    )
    user: Text | None = Field(default=None, description="who asks in the end; logged as a hash")
    safety_identifier: Text | None = Field(default=None, description="as user, and goes before it")
    quality: Literal["auto"] | None = Field(default=None, description="a model has one quality")
    background: Literal["auto", "opaque"] | None = Field(
        default=None, description="pictures are opaque"
    )
    moderation: Literal["auto"] | None = Field(
        default=None, description="this server judges no prompts"
    )
    complexity: None = Field(default=None, description="refused")
    frame_count: None = Field(default=None, description="refused")
    frame_duration_ms: None = Field(default=None, description="refused")
    style: None = Field(default=None, description="refused")
    svg: None = Field(default=None, description="refused")
    seed: Seed | None = Field(
        default=None,
        description="of the first picture, the next count up; drawn at random by default and told "
        "in the answer",
    )
    negative_prompt: Text | None = Field(default=None, description="what to lead away from")
    guidance_scale: Guidance | None = Field(
        default=None, description="weight of guidance, 1 is off; or stage name to weight"
    )
    guidance_interval: Intervals | None = Field(
        default=None,
        description="noise levels [low, high] between which guidance is on; or stage name to these",
    )
    num_inference_steps: StepCounts | None = Field(
        default=None, description="steps of every stage; or stage name to steps"
    )
    noise_level: Levels | None = Field(
        default=None,
        description="augmentation level of every super-resolution stage; or stage name to level",
    )
    sampler: Samplers | None = Field(
        default=None, description="sampler of every stage; or stage name to sampler"
    )

    @field_validator(*REFUSED, mode="before")
    @classmethod
    def _refused(cls, value: Any, info: Any) -> None:
        if value is not None:
            raise Unsupported(REFUSED[info.field_name])

    @field_validator("response_format", mode="before")
    @classmethod
    def _no_links(cls, value: Any) -> Any:
        if value == "url":
            raise Unsupported("This server keeps no files to link to; take 'b64_json'.")
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}

    @property
    def count(self) -> int:
        """How many pictures."""
        return self.n or 1

    @property
    def format(self) -> FileFormat:
        """The format of the files."""
        return self.output_format or "png"

    @property
    def previews(self) -> int:
        """How many previews of each picture."""
        return self.partial_images or 0

    @property
    def end_user(self) -> str | None:
        """Who asks in the end."""
        return self.safety_identifier or self.user or None

    def check(self, limits: LimitConfig, as_job: bool) -> None:
        """Refuse what is more than this server allows, or does not go together.

        Raises:
            Problem: which field, and why.
        """
        if self.count > limits.pictures:
            raise _wrong("n", f"at most {limits.pictures} pictures are drawn of a request")
        if self.seed is not None and self.seed + self.count > 2**64:
            raise _wrong("seed", "the last picture's would be beyond 64 bits")
        for field in ("prompt", "negative_prompt"):
            if len(getattr(self, field) or "") > limits.prompt:
                raise _wrong(field, f"at most {limits.prompt} characters are read")
        steps = self.num_inference_steps or 0
        if (max(steps.values(), default=0) if isinstance(steps, dict) else steps) > limits.steps:
            raise _wrong("num_inference_steps", f"at most {limits.steps} are done")
        if self.output_compression is not None and self.format == "png":
            raise _wrong("output_compression", "a png loses nothing; leave it out, or take webp")
        if as_job and self.stream:
            raise _wrong("stream", "a job's events have an address of their own; leave it out")
        if self.stream and self.count > 1:
            why = "the events of a stream do not tell pictures apart; ask for one, or make a job"
            raise _wrong("n", why)
        if self.previews and not (self.stream or as_job):
            raise _wrong("partial_images", "previews go with stream or a job; leave it out")

    def options(self, stages: Sequence[StageConfig]) -> SampleOptions:
        """Return what is asked of a model's stages, base first.

        Raises:
            Problem: there is no such stage, or none that makes this size.
        """
        samplers: dict[str, dict[str, Any]] = {}
        values: dict[str, Any] = {}
        known = [stage.name for stage in stages]
        fields = {  # ours, and a sampler's setting; what is asked of all stages is named as this
            "num_inference_steps": "steps",
            "guidance_scale": "guidance",
            "guidance_interval": "guidance_interval",
            "sampler": "name",
        }
        for field, name in fields.items():
            common, own = _parts(getattr(self, field), field, known)
            for stage, value in own.items():
                samplers.setdefault(stage, {})[name] = value
            if common is not None:
                values["sampler" if field == "sampler" else name] = common
        common, own = _parts(self.noise_level, "noise_level", known)
        if common is not None:
            values["noise_level"] = common
        if own:
            values["levels"] = {name: AugmentationLevel(value=value) for name, value in own.items()}
        if samplers:
            values["samplers"] = samplers
        if self.negative_prompt is not None:
            values["negative_prompts"] = (self.negative_prompt,)
        if self.size is not None and self.size != "auto":
            values |= _sized(self.size, stages)
        return SampleOptions(**values)


def picture_size(stages: Sequence[StageConfig], request: Request) -> tuple[int, int]:
    """Return the width and height of what a request draws, pixels."""
    last = next(stage for stage in stages if stage.name == request.settings[-1].stage)
    factor = last.size // stages[0].size
    return request.size[0] * factor, request.size[1] * factor


def _sized(size: str, stages: Sequence[StageConfig]) -> dict[str, str]:
    """Return the stage, and the aspect ratio, that make pictures of a size."""
    squares = [f"{stage.size}x{stage.size}" for stage in stages]
    shapes: list[str] = []
    wanted = _SIZE.fullmatch(size)
    if wanted is not None:
        for stage in stages:
            options = {"last_stage": stage.name, "aspect": f"{wanted[1]}:{wanted[2]}"}
            with suppress(UserError):  # too long an aspect ratio
                request = Request.of(stages, "", [0], SampleOptions(**options))
                shapes.append("{}x{}".format(*picture_size(stages, request)))
                if shapes[-1] == size:
                    return options
    near = "" if shapes in ([], squares) else f", and in this shape {', '.join(shapes)}"
    raise _wrong("size", f"this model makes {', '.join(squares)}{near}; or take auto")


def _parts(given: Any, field: str, known: Sequence[str]) -> tuple[Any, Mapping[str, Any]]:
    """Return what is asked of all stages, or None, and what is asked stage by stage."""
    if not isinstance(given, dict):
        return given, {}
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise _wrong(field, f"this model has no stage '{unknown}'; it has {', '.join(known)}")
    return None, given


def _wrong(field: str, why: str) -> Problem:
    return Problem(400, f"Invalid value for '{field}': {why}.", "invalid_value", field)
