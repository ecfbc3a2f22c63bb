"""A checkpoint's configuration: every property that its weights were trained with."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cascade.config.aspect import Aspect
from cascade.config.base import Factor, Frozen, Share, Side
from cascade.config.guidance import Interval
from cascade.config.respacing import named_timesteps
from cascade.config.unet import UNetConfig
from cascade_kernels.names import ThresholdKind

ScheduleName = Literal["cosine", "squared_cosine", "linear"]
Prediction = Literal["eps", "v", "x0"]
NoiseAt = Literal["low", "high"]
Upsample = Literal["nearest", "bilinear", "bicubic"]
SamplerName = Literal["ancestral", "ddim", "dpmpp_2m", "heun"]
Spacing = Literal["linspace", "leading"]
Variance = Literal["learned", "fixed_small", "fixed_large"]
Cleaning = Literal["none", "lower", "deepfloyd"]
NullText = Literal["zeros", "empty"]
RecipeName = Literal["paper", "mini", "deepfloyd"]
Precision = Literal["fp32", "bf16", "auto"]
Steps = Annotated[int, Field(strict=True, gt=0, le=1000)]
"""Of a sampler."""
ResizeKernel = Literal["bicubic", "bilinear", "lanczos", "box"]


class DiffusionConfig(Frozen):
    """The forward process and what the network predicts."""

    schedule: ScheduleName = Field(default="cosine", description="noise level over time")
    prediction: Prediction = Field(default="eps", description="what the network predicts")


class AugmentationLevel(Frozen):
    """Noise augmentation level of the low-resolution image (Imagen section 2.4).

    `time` is a position in [0, 1] on the augmentation schedule; `variance` is sigma^2 of the
    variance-preserving noise. DreamBooth's 1e-3 and 1e-5 name no unit; as variances they are noise
    of four and of 0.4 grey levels, as times both would be below one grey level.
    """

    value: Share = Field(description="how much noise")
    unit: Literal["time", "variance"] = Field(default="time", description="what `value` is")

    @model_validator(mode="after")
    def _leaves_a_picture(self) -> Self:
        if self.unit == "variance" and self.value == 1.0:
            raise ValueError("noise of variance 1 leaves nothing of the picture; give less than 1")
        return self


class LowResConfig(Frozen):
    """Low-resolution conditioning of a super-resolution stage."""

    size: Side = Field(description="side of the low-resolution picture, pixels")
    schedule: ScheduleName = Field(default="cosine", description="of its noise")
    noise_at: NoiseAt = Field(
        default="high",
        description="low noises the small picture and then enlarges it (Imagen's wording), high "
        "enlarges it first (DeepFloyd IF)",
    )
    upsample: Upsample = Field(default="bilinear", description="how it is enlarged")
    align_corners: bool = Field(
        default=False, description="as in torch.nn.functional.interpolate; not for nearest"
    )
    training_levels: tuple[AugmentationLevel, AugmentationLevel] = Field(
        default=(AugmentationLevel(value=0.0), AugmentationLevel(value=1.0)),
        description="the range that a row's level is drawn from",
    )
    sampling_level: AugmentationLevel = Field(
        default=AugmentationLevel(value=0.2), description="the level while sampling"
    )
    crop: Side | None = Field(
        default=None, description="side of the high-resolution crops trained on, pixels"
    )


class ThresholdConfig(Frozen):
    """Clipping of the predicted x0 while sampling (Imagen section 2.3)."""

    kind: ThresholdKind = Field(
        default="dynamic",
        description="none leaves it, static clips to [-1, 1], dynamic clips each picture to "
        "[-s, s] and divides by s, where s >= 1 is a percentile of its absolute values",
    )
    percentile: float = Field(
        default=0.995,
        strict=True,
        gt=0.0,
        le=1.0,
        description="Imagen's Fig. A.10 has 0.995, DeepFloyd IF 0.95",
    )
    cap: Annotated[float, Field(strict=True, ge=1.0, le=1000.0)] | None = Field(
        default=None, description="greatest s allowed; DeepFloyd IF's base has 1.5"
    )


class SamplerConfig(Frozen):
    """A sampler, its steps and its guidance."""

    name: SamplerName = Field(default="ancestral", description="which sampler")
    steps: Steps = Field(default=100, description="how many steps")
    spacing: Spacing = Field(
        default="linspace",
        description="of the steps on a discrete schedule, by diffusers' names: from the last "
        "timestep to 0, or every k-th from 0",
    )
    timesteps: tuple[Annotated[float, Field(strict=True)], ...] | None = Field(
        default=None,
        max_length=1000,
        description="an explicit descending list in 0..1000, which replaces `steps`, or the name "
        "of one of DeepFloyd IF's, such as 'smart100'",
    )
    eta: Share = Field(
        default=0.0,
        description="DDIM's stochasticity: 0 is deterministic, 1 is ancestral with the smallest "
        "variance",
    )
    variance: Variance = Field(
        default="fixed_small",
        description="of an ancestral step; learned interpolates between the bounds in log space "
        "(Nichol & Dhariwal 2021, eq. 15)",
    )
    guidance: Factor = Field(default=5.0, description="w of Imagen eq. 2; 1 is off")
    guidance_interval: Interval | None = Field(
        default=None,
        description="noise levels sigma, low and high, between which guidance is on; outside of "
        "them a step costs half (Kynkaanniemi et al. 2024). Without it, everywhere",
    )
    threshold: ThresholdConfig = Field(default=ThresholdConfig(), description="of the guided x0")
    precision: Precision = Field(
        default="fp32",
        description="of the network's arithmetic: bf16 is autocast; weights and the sampler's own "
        "sums stay in fp32; auto is bf16 on a device that has it. An engine keeps the precision "
        "that it was exported in",
    )

    @property
    def count(self) -> int:
        """How many steps."""
        return len(self.timesteps) if self.timesteps else self.steps

    def values_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return its values with some replaced; a list of timesteps gives way to `steps`."""
        given = dict(changes)
        return self.model_dump() | ({"timesteps": None} if "steps" in given else {}) | given

    def changed(self, source: str, **changes: Any) -> Self:
        """Return a copy with some settings replaced, as `values_with`.

        Raises:
            UserError: as `parse`.
        """
        return self.parse(self.values_with(changes), source)

    @field_validator("timesteps", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return named_timesteps(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _descending(self) -> Self:
        times = self.timesteps
        if times is None:
            return self
        inside = all(0 <= time <= 1000 for time in times)
        # Nearer to each other two may share a level where a schedule is clipped, at its ends.
        if not times or not inside or any(a - b < 0.1 for a, b in pairwise(times)):
            raise ValueError(
                "timesteps must be a strictly descending list of numbers in 0..1000, 0.1 apart or "
                "more"
            )
        return self


class TextConfig(Frozen):
    """The conventions by which captions become the network's conditioning."""

    max_length: int = Field(
        default=128, strict=True, gt=0, le=4096, description="tokens, end mark included"
    )
    cleaning: Cleaning = Field(default="none", description="what is done to a caption first")
    null: NullText = Field(
        default="zeros",
        description="the unconditional text: a zeroed embedding (Imagen) or that of '' (IF)",
    )
    masked: bool = Field(
        default=True,
        description="whether padding is hidden from the U-Net; DeepFloyd IF's reads it, masked "
        "inside the encoder alone, like any token",
    )


class SubjectConfig(Frozen):
    """A subject a stage was personalised on."""

    identifier: str = Field(min_length=1, max_length=100, description="the rare token [V]")
    class_noun: str = Field(min_length=1, max_length=100, description="its class: dog, ...")


class StageConfig(Frozen):
    """One stage of a cascade: the network and everything its weights depend on."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100, description="what people call it by"
    )
    size: Side = Field(description="side of the pictures it makes, pixels")
    resize: ResizeKernel = Field(default="bicubic", description="Pillow's kernel, antialiased")
    unet: UNetConfig = Field(description="the network")
    diffusion: DiffusionConfig = Field(default=DiffusionConfig(), description="the noise")
    low_res: LowResConfig | None = Field(
        default=None, description="of a super-resolution stage, what it enlarges"
    )
    text: TextConfig = Field(default=TextConfig(), description="how captions are read")
    sampler: SamplerConfig = Field(default=SamplerConfig(), description="how it samples")
    subjects: tuple[SubjectConfig, ...] = Field(
        default=(), description="what it was personalised on, the latest last"
    )
    licence: str = Field(default="", description="what its weights may be used for")

    def shape(self, aspect: Aspect, multiple: int = 1) -> tuple[int, int]:
        """Return the width and height, pixels, of an aspect ratio; about as many as a square's.

        Args:
            multiple: of which both are, as they are of the network's factor.
        """
        ratio, whole = aspect[0] / aspect[1], math.lcm(self.unet.factor, multiple)
        sides = (self.size * math.sqrt(ratio), self.size / math.sqrt(ratio))
        width, height = (max(1, round(side / whole)) * whole for side in sides)
        return width, height

    @model_validator(mode="before")
    @classmethod
    def _one_subject(cls, values: Any) -> Any:
        """Read checkpoints of before a stage could have several subjects."""
        if not isinstance(values, Mapping) or "subject" not in values or "subjects" in values:
            return values
        others = {name: value for name, value in values.items() if name != "subject"}
        held = values["subject"]
        return others | {"subjects": () if held is None else (held,)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.unet.low_res != (self.low_res is not None):
            raise ValueError("[low_res] and unet.low_res belong together; give both or neither")
        if self.low_res is not None and self.size % self.low_res.size:
            raise ValueError(
                f"size {self.size} is no multiple of low_res.size {self.low_res.size}; "
                "super-resolution stages enlarge by a whole factor"
            )
        if self.size % self.unet.factor:
            raise ValueError(
                f"size {self.size} must be a multiple of the network's {self.unet.factor}"
            )
        if self.low_res is not None and self.low_res.crop is not None:
            self._check_crop(self.low_res.crop, self.size // self.low_res.size)
        if self.unet.text_norm == "group" and self.text.masked:
            raise ValueError(
                'unet.text_norm "group" mixes all tokens, padding too, so that a picture would '
                'depend on the prompts beside it; set text.masked = false, or take "layer"'
            )
        if self.sampler.variance == "learned" and not self.unet.learned_variance:
            raise ValueError("sampler.variance 'learned' needs unet.learned_variance = true")
        times, discrete = self.sampler.timesteps, self.diffusion.schedule != "cosine"
        if discrete and times and times[0] > 999:
            raise ValueError("sampler.timesteps end at 999 on a discrete schedule")
        if self.sampler.spacing != "linspace" and self.diffusion.schedule == "cosine":
            raise ValueError("sampler.spacing needs a discrete schedule: squared_cosine or linear")
        if self.unet.learned_variance and self.diffusion.schedule == "cosine":
            raise ValueError("learned variance needs a discrete schedule: squared_cosine or linear")
        return self

    def _check_crop(self, crop: int, factor: int) -> None:
        whole = math.lcm(factor, self.unet.factor)
        if crop % whole or crop > self.size:
            raise ValueError(f"low_res.crop must be a multiple of {whole} and <= {self.size}")
        if self.low_res is not None and self.low_res.align_corners:
            # The corners of a crop are others than the picture's: its pixels would be shifted.
            raise ValueError("low_res.crop needs low_res.align_corners = false")
