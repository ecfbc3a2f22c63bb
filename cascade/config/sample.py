"""Settings of one sampling, and of `cascade sample`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from cascade.config.aspect import AspectText
from cascade.config.base import AtOnce, Drawn, Factor, Frozen, Seed, Share, Size, Texts
from cascade.config.encoder import Embeddings, EncoderMode
from cascade.config.engine import BundleOptions
from cascade.config.guidance import Interval
from cascade.config.stage import AugmentationLevel, Precision, SamplerName, Steps
from cascade_kernels.names import Backend


class SampleOptions(Frozen):
    """Options of a sampling beside prompts and seeds; None keeps the checkpoints' own."""

    negative_prompts: Texts | None = Field(
        default=None,
        description="what to lead away from, in place of the unconditional text (Imagen eq. 2); "
        "one for all pictures or one for each",
    )
    sampler: SamplerName | None = Field(
        default=None, description="another sampler than the checkpoints', for every stage"
    )
    steps: Steps | None = Field(
        default=None,
        description="another number of its steps; a checkpoint's list of timesteps gives way",
    )
    timesteps: Texts | None = Field(
        default=None,
        description="a named list in their place, such as smart100: one for all stages, or one for "
        "each",
    )
    guidance: Factor | None = Field(default=None, description="another guidance weight; 1 is off")
    guidance_interval: Interval | None = Field(
        default=None,
        description="noise levels sigma, low,high, between which guidance is on, such as 0.5,100: "
        "steps outside of them cost half",
    )
    precision: Precision | None = Field(
        default=None,
        description="of the networks' arithmetic; auto is bf16 on a device that has it",
    )
    noise_level: Share | None = Field(
        default=None,
        description="augmentation level of every super-resolution stage, a time of its schedule",
    )
    samplers: Mapping[str, Any] | None = Field(
        default=None,
        description="stage name to a SamplerConfig, or to those of its settings that differ",
    )
    levels: Mapping[str, AugmentationLevel] | None = Field(
        default=None, description="stage name to augmentation level"
    )
    aspect: AspectText | None = Field(
        default=None,
        description="width to height, such as 3:2, from 1:4 to 4:1, with about as many pixels as a "
        "square; for a cascade whose base was trained on such pictures",
    )
    last_stage: str | None = Field(default=None, description="stop after this stage")
    batch_size: AtOnce = Field(default=8, description="pictures worked on at once")

    def changed(self, source: str, changes: Mapping[str, Any]) -> Self:
        """Return a copy with some fields replaced.

        Raises:
            UserError: as `parse`.
        """
        chosen = {name: getattr(self, name) for name in self.model_fields_set}
        return self.parse(chosen | dict(changes), source)

    @model_validator(mode="before")
    @classmethod
    def _scalars(cls, values: Any) -> Any:
        """Take NumPy's and PyTorch's numbers as Python's."""
        if not isinstance(values, Mapping):
            return values
        return {k: v.item() if getattr(v, "shape", None) == () else v for k, v in values.items()}

    @model_validator(mode="after")
    def _steps_or_timesteps(self) -> Self:
        if self.steps is not None and self.timesteps is not None:
            raise ValueError("steps and timesteps both say how to sample; give one of them")
        return self


class LoraOptions(Frozen):
    """LoRA files that are merged into a cascade."""

    lora: tuple[str, ...] = Field(
        default=(),
        description="a LoRA file to merge first: FILE for the base, or STAGE=FILE; may be repeated",
    )
    lora_scale: Annotated[float, Field(strict=True, ge=-1000, le=1000)] = Field(
        default=1.0, description="factor on all LoRA files"
    )
    lora_unet_only: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="leave out what LoRA files change of the text encoder"
    )

    @model_validator(mode="after")
    def _with_a_file(self) -> Self:
        alone = {"lora_scale", "lora_unet_only"} & self.model_fields_set
        if alone and not self.lora:
            raise ValueError(f"{min(alone)} belongs to lora; give both or neither")
        return self


class SampleConfig(SampleOptions, LoraOptions):
    """`cascade sample`: what to draw, with what, and where the files go."""

    prompts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="what to draw; may be repeated"
    )
    output: Path = Field(
        default=Path("pictures"), description="gets the pictures; those there are never replaced"
    )
    cascade: str | None = Field(
        default=None, description="a cascade folder; 'mini' if neither this nor a bundle"
    )
    num_images: Drawn = Field(default=4, description="pictures of each prompt")
    seed: Seed = Field(default=0, description="seed of the first picture; the next count up")
    size: Size | None = Field(
        default=None,
        description="use the last stage again until pictures are this wide; with an aspect, until "
        "squares would be",
    )
    device: str | None = Field(
        default=None, description="where the networks run: cpu, cuda, ...; the GPU if there is one"
    )
    kernels: Backend = Field(
        default="auto",
        description="Triton kernels: where measured to be fastest, always, or never",
    )
    embeddings: Embeddings = None
    encoder_mode: EncoderMode = "auto"
    bundle: Path | None = Field(
        default=None, description="a folder made by 'cascade export', in place of a cascade"
    )
    engines: BundleOptions = Field(
        default=BundleOptions(), description="how a bundle's engines run"
    )
