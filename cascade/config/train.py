"""Settings of the one training loop, and of `cascade train`."""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from cascade.config.averages import AverageConfig, warmed_up_decay
from cascade.config.base import Count, Frozen, Looks, Positive, Rows, Seed
from cascade.config.data import DataConfig, Location
from cascade.config.encoder import EncoderMode
from cascade.config.guard import GuardConfig
from cascade.config.machine import MachineConfig
from cascade.config.optimizer import OptimizerConfig
from cascade.config.parallel import ParallelConfig
from cascade.config.stage import Precision, StageConfig
from cascade.config.trackers import LoggingDir, Trackers, WandbConfig
from cascade_kernels.names import Backend

Weighting = Literal["prediction", "min_snr"]
LearnedVariance = Literal["train", "freeze", "drop"]
NoiseDevice = Literal["cpu", "device"]
Recomputation = Literal["none", "selective", "full"]


class ObjectiveConfig(Frozen):
    """The loss: unweighted on the predicted quantity (the papers'), or min-SNR weighted.

    A learned variance is trained with the bound ("train": the hybrid loss of Nichol & Dhariwal
    2021, eq. 16, DeepFloyd IF's own), left in its output layer as it is ("freeze"), or taken out of
    the network, which then samples with the smallest fixed one ("drop"). None trains it where there
    is one; a word is refused where there is none.
    """

    weighting: Weighting = Field(
        default="prediction",
        description="prediction is the plain mean squared error of what the network predicts, the "
        "papers' loss; min_snr weights x0 by min(SNR, gamma) (Hang et al. 2023, section 3.4)",
    )
    gamma: Positive = Field(default=5.0, description="limit of min_snr")
    variance: LearnedVariance | None = Field(
        default=None,
        description="a learned variance is trained with the bound, left as it is in the output "
        "layer (freeze), or taken out of the network (drop); trained if left out",
    )
    vb_weight: Positive = Field(default=1.0, description="of L_vb where variance is trained")


def _recomputation(value: object) -> object:
    """Take diffusers' switch for the word it stands for."""
    return {True: "full", False: "none"}.get(value, value) if isinstance(value, bool) else value


FREE: Final = frozenset(
    {
        "checkpoint_async",
        "checkpoint_every",
        "checkpoints_kept",
        "compile",
        "cuda_graphs",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "guard",
        "keep_checkpoints",
        "kernels",
        "log_every",
        "logging_dir",
        "parallel",
        "snapshot_every",
        "stop_every",
        "trackers",
        "validate_every",
        "wandb",
    }
)
"""What of a `TrainConfig` may change when a run goes on: memory, speed and what is told and kept.
Weights depend on them in the last bits at most."""


class TrainConfig(Frozen):
    """One training run. A batch is counted in positions of the stream, over all processes."""

    steps: Count = Field(description="optimizer steps")
    batch_size: Rows = Field(description="rows of a step, over all processes and passes")
    gradient_accumulation_steps: Rows = Field(default=1, description="passes in an optimizer step")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="the optimizer")
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="the loss")
    precision: Precision = Field(
        default="fp32", description="of the arithmetic; auto is bf16 on a device that has it"
    )
    parallel: ParallelConfig = Field(
        default=ParallelConfig(), description="how several processes share the network"
    )
    gradient_checkpointing: Annotated[Recomputation, BeforeValidator(_recomputation)] = Field(
        default="none",
        description="what is computed again in the backward pass instead of kept: full keeps each "
        "block's input, selective also what its convolutions and attention made",
    )
    compile: bool = Field(
        default=False,
        description="compile the network's blocks, and noise of the device, with torch.compile",
    )
    cuda_graphs: bool = Field(
        default=False,
        description="replay each compiled block as a CUDA graph, which spares its launches: small "
        "networks gain, and their memory is held from step to step",
    )
    kernels: Backend = Field(
        default="auto", description="auto takes a Triton kernel where it was measured to be fastest"
    )
    ema_decay: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] | None = Field(
        default=None, description="publish an average of the weights, of this decay a step"
    )
    averages: tuple[AverageConfig, ...] = Field(
        default=(), description="more averages; the first of all is published"
    )
    guard: GuardConfig = Field(
        default=GuardConfig(), description="what is done about steps that would ruin the run"
    )
    seed: Seed = Field(default=0, description="seed of everything random")
    noise: NoiseDevice = Field(
        default="cpu",
        description="where a row's noise is drawn: one row after another on the CPU, or a batch at "
        "once where it is trained; the numbers differ",
    )
    stratified: bool = Field(
        default=False,
        description="spread the timesteps evenly over each batch instead of drawing every row's "
        "alone; the mean gradient is the same and varies less",
    )
    log_every: Count = Field(default=10, description="write a line of the log every so often")
    checkpoint_every: Count = Field(
        default=500, description="save the run's state every so many steps"
    )
    checkpoints_kept: Count = Field(
        default=2,
        description="how many are kept: the one before the newest is there if that is damaged",
    )
    snapshot_every: Count | None = Field(
        default=None,
        description="keep the power-function averages of every so many steps; 'cascade checkpoint "
        "average' makes those of other widths from them",
    )
    checkpoint_async: bool = Field(
        default=True,
        description="write them while the run goes on, from a copy in the machine's memory",
    )
    keep_checkpoints: bool = Field(
        default=False,
        description="keep them when a stage is done: the run can then be made longer",
    )
    stop_every: Count = Field(
        default=1,
        description="ask all processes every so many steps whether one was told to stop",
    )
    validate_every: Count | None = Field(
        default=None,
        description="draw validation pictures and score held-out ones every so many steps too, by "
        "the stage in training; that is every validate_every * batch_size images",
    )
    trackers: Trackers = ()
    logging_dir: LoggingDir = Path("tensorboard")
    wandb: WandbConfig = Field(default=WandbConfig(), description="Weights & Biases")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError("batch_size must be a multiple of gradient_accumulation_steps")
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps is {self.optimizer.warmup_steps} and steps is "
                f"{self.steps}: the learning rate would never be reached; warm up for less, or "
                "train longer"
            )
        if self.optimizer.name == "adafactor" and self.parallel.strategy != "ddp":
            raise ValueError(
                f"adafactor needs whole weights and parallel.strategy {self.parallel.strategy} "
                "shares them; take optimizer adamw or adamw8bit, or strategy ddp"
            )
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs replays compiled blocks; set compile too")
        if self.cuda_graphs and self.parallel.strategy != "ddp":
            raise ValueError(
                f"cuda_graphs needs weights that stay in place and parallel.strategy "
                f"{self.parallel.strategy} gathers them anew; take strategy ddp, or no graphs"
            )
        if self.snapshot_every and not any(one.std for one in self.averages):
            raise ValueError("snapshot_every keeps averages of a std; name one in averages")
        if len(set(self.average_labels)) < len(self.average_labels):
            raise ValueError("averages names one twice; leave one of them out")
        return self

    @property
    def average_labels(self) -> tuple[str, ...]:
        """Names of all averages, the one that is published first."""
        first = () if self.ema_decay is None else (f"decay-{self.ema_decay:g}",)
        return (*first, *(average.label for average in self.averages))

    @property
    def ema_note(self) -> str | None:
        """What to say of an average that warms up for longer than the run; None of another."""
        most = warmed_up_decay(self.steps - 1)
        if self.ema_decay is None or self.ema_decay <= most:
            return None
        return (
            f"{self.ema_decay} is not reached in {self.steps} steps: the average's decay grows to "
            f"{most:.4g}, and any number above that gives the same weights."
        )

    @property
    def may_grow(self) -> bool:
        """Whether more steps only add to the run: no step's rate depends on how many there are."""
        return self.optimizer.schedule == "constant"


HELD_OUT_ROWS: Final = 256
"""Held-out pictures that are scored where no number is given."""


class ValidationConfig(Frozen):
    """The pictures drawn, and the held-out ones scored, while training."""

    prompts: tuple[str, ...] = Field(
        default=(), description="none named are the captions of the first pictures, once each"
    )
    images_per_prompt: Looks = Field(default=4, description="drawn of each; 0 draws none")
    x0_rows: Annotated[int, Field(strict=True, ge=0, le=64)] = Field(
        default=4,
        description="rows of training whose clean pictures are predicted at five noise levels; 0 "
        "draws none",
    )
    cascade: str | None = Field(
        default=None,
        description="a cascade, a folder or 'mini', whose other stages complete the one in "
        "training: they make what it enlarges, and enlarge what it makes",
    )

    loss_rows: Annotated[int, Field(strict=True, ge=0, le=2**16)] | None = Field(
        default=None,
        description="held-out pictures whose loss is told at five noise levels, which all "
        f"processes hold in memory together; 0 is none. Left out, {HELD_OUT_ROWS} of those that "
        "there are",
    )
    data: Location | None = Field(
        default=None,
        description="a pack or an array of held-out pictures, instead of what the packs trained on "
        "hold out; all of them where it holds none out itself",
    )

    @model_validator(mode="after")
    def _draws(self) -> Self:
        if self.cascade is not None and self.images_per_prompt == 0:
            raise ValueError("a cascade is named and images_per_prompt is 0; leave one out")
        if self.data is not None and self.loss_rows == 0:
            raise ValueError("data is named and loss_rows is 0; leave one out")
        return self


class PretrainConfig(Frozen):
    """`cascade train CONFIG`: train one stage from scratch, or go on from a stage's weights."""

    stage: StageConfig = Field(description="what is trained")
    train: TrainConfig = Field(description="how long and how")
    machine: MachineConfig = Field(
        default=MachineConfig(), description="what --plan reckons with; a run takes what is there"
    )
    data: DataConfig = Field(description="on which pictures")
    validation: ValidationConfig = Field(
        default=ValidationConfig(), description="what is looked at on the way"
    )
    text_encoder: Path | None = Field(default=None, description="folder of a T5 encoder")
    encoder_mode: EncoderMode = "auto"
    embeddings: Location | None = Field(
        default=None,
        description="a store made by 'cascade embed', used instead of the text encoder; or its "
        "address",
    )
    output: Path = Field(description="folder of the run; the stage is in it at the end")
    initial_weights: Path | None = Field(
        default=None, description="folder of a stage to go on from"
    )

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if self.text_encoder is None and self.embeddings is None:
            raise ValueError("text comes from text_encoder or from embeddings; give one of them")
        return self
