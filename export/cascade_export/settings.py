"""Settings of an export, its check and its server; imports no torch."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cascade.config.base import AtOnce, Frozen, Name
from cascade.config.encoder import Embeddings, EncoderMode
from cascade.config.sample import LoraOptions
from cascade.config.stage import Steps
from cascade.errors import UserError
from cascade.text.cleaning import clean
from cascade_export.engines import EngineName
from cascade_export.engines.tensorrt.options import PlanOptions
from cascade_export.graph.numerics import Numerics, Precision, Quantization, TextForm

PROMPTS: Final = (
    "a photo of a dog on the beach",
    "a red backpack",
    "a cat in the snow, black and white",
    "",
)
"""What the check and a calibration sample unless they are asked for something else."""


def _readable(text: str) -> str:
    clean(text, "none")
    return text


Prompts = Annotated[tuple[Annotated[str, AfterValidator(_readable)], ...], Field(min_length=1)]
"""Texts that an encoder can read."""


def parse_targets(text: Any) -> Any:
    """Read compute capabilities from `sm89,sm120`; sorted, each once. Numbers stay as they are.

    Raises:
        UserError: a name is not of that form.
    """
    if not isinstance(text, str):
        return text
    names = [name.strip().lower() for name in text.split(",")]
    wrong = [name for name in names if not re.fullmatch("sm[0-9]{2,3}", name)]
    if wrong:
        raise UserError(f"{wrong[0]!r} is not a GPU target; write targets as in sm89,sm120.")
    return tuple(sorted({int(name[2:]) for name in names}))


class Gate(Frozen):
    """Settings of the parity gate: its samples, and its engine's device."""

    prompts: Prompts = Field(PROMPTS, description="what the check samples; may be repeated")
    steps: Steps | None = Field(
        None, description="steps of the check's samplers, in place of the checkpoints'"
    )
    batch_size: AtOnce = Field(2, description="images of the check worked on at once")
    device: str | None = Field(
        None,
        description="where the check runs the engine: cpu, cuda, ...; the GPU if it can use one",
    )
    command: str = Field("cascade export", description="what makes the report again")


class ExportOptions(PlanOptions):
    """Options of an export."""

    engine: EngineName = Field("onnxruntime", description="what runs it")
    precision: Precision = Field("fp32", description="of weights and arithmetic")
    quantization: Quantization = Field(
        "none", description="run the blocks' convolutions in 8 bits; costs likeness"
    )
    calibration_prompts: Prompts = Field(
        PROMPTS,
        description="with quantization: prompts that set its scales; may be repeated",
    )
    targets: Annotated[
        tuple[Annotated[int, Field(strict=True)], ...], BeforeValidator(parse_targets)
    ] = Field((), description="GPUs that TensorRT builds for, as in sm89,sm120")
    text_encoder: TextForm = Field(
        "torch", description="what runs the text encoder: PyTorch, or ONNX Runtime from a graph"
    )
    retry: Annotated[bool, Field(strict=True)] = Field(
        False, description="if the check fails, keep the layer at fault in fp32 and try again"
    )
    gate: Gate = Field(Gate(), description="the check")

    @property
    def numerics(self) -> Numerics:
        """Return what the graphs compute in."""
        return Numerics(precision=self.precision, quantization=self.quantization)

    @model_validator(mode="after")
    def _can_be_calibrated(self) -> Self:
        if self.quantization == "none" and "calibration_prompts" in self.model_fields_set:
            raise ValueError("calibration_prompts belong to quantization; give both or neither")
        if self.quantization != "none" and self.precision == "bf16":
            raise ValueError("a bf16 graph cannot be calibrated; quantize an fp32 or fp16 one")
        return self


class ExportConfig(ExportOptions, LoraOptions):
    """`cascade export`: which cascade, how, and into which bundle."""

    cascade: str = Field("mini", description="a cascade folder, or 'mini'")
    output: Path | None = Field(None, description="a new folder for the bundle")
    into: Path | None = Field(
        None, description="add the cascade, a fine-tune, to this bundle instead"
    )
    subject: Name | None = Field(None, description="with --into: what to call the fine-tune")
    embeddings: Embeddings = None
    encoder_mode: EncoderMode = "auto"

    @model_validator(mode="after")
    def _one_bundle(self) -> Self:
        if (self.output is None) == (self.into is None):
            raise ValueError("give --output for a new bundle, or --into for one that takes a tune")
        if (self.into is None) != (self.subject is None):
            raise ValueError("--into and --subject go together: a bundle, and its fine-tune's name")
        fixed = (ExportOptions.model_fields.keys() - {"gate"}) & self.model_fields_set
        if self.into is not None and fixed:
            raise ValueError(
                f"{min(fixed)} is what {self.into} was exported with; leave it out with --into"
            )
        return self


class ServerOptions(Frozen):
    """Options of a bundle's models in Triton Inference Server."""

    name: Name = Field("cascade", description="what clients call the model; others begin with it")
    # The server holds buffers for the largest batch.
    pictures_at_once: AtOnce = Field(
        4, description="images of one request that are worked on at a time"
    )
    concurrent: AtOnce = Field(2, description="requests that are worked on at the same time")
    # Times are written as 64-bit microseconds.
    queue_delay: Annotated[int, Field(strict=True, ge=0, le=10**9)] = Field(
        2000, description="microseconds a stage's call waits for others to share its batch"
    )
    queue_size: Annotated[int, Field(strict=True, gt=0, le=10**6)] = Field(
        64, description="calls that may wait for a stage; more are refused"
    )
    queue_timeout: Annotated[float, Field(strict=True, ge=0.001, le=10**6)] = Field(
        60.0, description="seconds after which a waiting call is refused"
    )

    @property
    def max_rows(self) -> int:
        """Return the largest batch of a stage: with guidance an image takes two rows."""
        return 2 * self.pictures_at_once * self.concurrent


class ServerConfig(ServerOptions):
    """`cascade export-triton`: which bundle, and which model repository."""

    output: Path = Field(description="the model repository; may hold others")
    bundle: Path | None = Field(None, description="the same as BUNDLE")
    subject: Name | None = Field(None, description="one of the bundle's fine-tunes")
