"""Settings of DreamBooth (Ruiz et al. 2022), and the recipes known to work."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cascade.config.base import Frozen
from cascade.config.encoder import EncoderMode
from cascade.config.stage import AugmentationLevel, RecipeName, SamplerConfig
from cascade.config.train import OptimizerConfig, TrainConfig

AugmentationName = Literal["imagen", "dreambooth-reference", "dreambooth"]


class Augmentation(Frozen):
    """The noise put on the low-resolution picture while a stage is tuned, and when it samples."""

    training: tuple[AugmentationLevel, AugmentationLevel]
    sampling: AugmentationLevel | None = Field(description="None keeps the checkpoint's own")


def _fixed(variance: float) -> Augmentation:
    level = AugmentationLevel(value=variance, unit="variance")
    return Augmentation(training=(level, level), sampling=level)


AUGMENTATIONS: dict[AugmentationName, Augmentation] = {
    # Imagen section 2.4: a level drawn at random for every row.
    "imagen": Augmentation(
        training=(AugmentationLevel(value=0.0), AugmentationLevel(value=1.0)), sampling=None
    ),
    # DreamBooth's supplement lowers the level "from 1e-3 to 1e-5" and names no unit. As variances
    # of the noise they are 4 and 0.4 grey levels, which fits the blur it shows; as times of the
    # cosine schedule both would vanish in 8-bit rounding.
    "dreambooth-reference": _fixed(1e-3),
    "dreambooth": _fixed(1e-5),
}


class PriorConfig(Frozen):
    """Class-specific prior preservation (DreamBooth section 3.3)."""

    weight: float = Field(default=1.0, ge=0.0, description="lambda of eq. 2")
    images: int = Field(default=1000, gt=0)
    batch_size: int = Field(default=16, gt=0)
    sampler: SamplerConfig | None = Field(
        # Guidance off: eq. 2 samples from the model itself, and class images sharpened by guidance
        # would be sharpened again whenever the tuned model samples the class.
        default=SamplerConfig(name="ancestral", steps=100, guidance=1.0),
        description="how the base draws them; None is the checkpoint's own way, guidance off",
    )
    scenes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="what is said after the class prompt, by turns with nothing, so that the words "
        "keep their meaning: 'on the beach'. The paper has none",
    )
    caption_dropout: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="share of class images trained on without their prompt; guidance subtracts the "
        "unconditional branch, which otherwise drifts to the subject. The paper states none",
    )
    super_resolution: bool = Field(
        default=False, description="preserve the prior of super-resolution stages too"
    )

    def prompts(self, of_class: str) -> tuple[str, ...]:
        """What the class images show, by turns: the class, and the class in every scene."""
        return (of_class, *(f"{of_class} {scene}" for scene in self.scenes))


class Recipe(Frozen):
    """How long and how hard a cascade is tuned on a subject."""

    prior: PriorConfig | None = PriorConfig()
    base: TrainConfig
    super_resolution: TrainConfig
    augmentation: AugmentationName = "dreambooth"
    flip: bool = Field(default=False, description="mirror half of the photos' rows")
    center_crop: bool = Field(default=True, description="else a random square of each photo")


def _tuning(
    learning_rate: float,
    steps: int,
    batch_size: int,
    accumulation: int = 1,
    schedule: Literal["constant", "linear"] = "constant",
) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=learning_rate, weight_decay=1e-2, schedule=schedule)
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        optimizer=optimizer,
    )


RECIPES: dict[RecipeName, Recipe] = {
    # DreamBooth section 3.3: rate 1e-5, 1000 steps, lambda 1, about 1000 class images. One photo
    # and one class image a step is the reading under which the numbers of both versions of the
    # paper agree. The optimizer is not stated.
    "paper": Recipe(base=_tuning(1e-5, 1000, 1), super_resolution=_tuning(1e-5, 1000, 1)),
    # For the few million weights of `mini`, which move further at a step of this size.
    "mini": Recipe(
        prior=PriorConfig(
            images=100,
            batch_size=50,
            caption_dropout=0.25,
            sampler=SamplerConfig(steps=32, guidance=1.0),
        ),
        base=_tuning(1e-3, 800, 4, schedule="linear"),
        super_resolution=_tuning(5e-4, 400, 4, schedule="linear"),
    ),
    # DeepFloyd IF, all weights of both stages, after diffusers' examples/dreambooth/README.md,
    # section "IF": stage I at 1e-7, batch 4, 150 steps; stage II at 5e-6, batch 2 x 6 accumulated,
    # 2000 steps. Both were found without prior preservation and with the variance dropped, and
    # stage II on the noisy picture shown twice instead of pairs; here they are not yet measured.
    "deepfloyd": Recipe(
        # On, as in DreamBooth section 3.3; `--no-prior-preservation` is diffusers' recipe. The 600
        # class rows of the run show each image once. They are drawn as the checkpoint samples:
        # learned variance, its thresholding. IF was trained with 10 % of the captions dropped (its
        # model card).
        prior=PriorConfig(images=600, caption_dropout=0.1, sampler=None),
        base=_tuning(1e-7, 150, 4),
        super_resolution=_tuning(5e-6, 2000, 12, accumulation=6),
    ),
}


class DreamBoothConfig(Frozen):
    """One personalisation: which cascade, which subject, how, and where to."""

    cascade: str
    instance_data_dir: Path
    output_dir: Path
    class_noun: str
    identifier: str | None = Field(default=None, description="None picks a rare token")
    instance_prompt: str = "a {identifier} {class_noun}"
    class_prompt: str = "a {class_noun}"
    sr_prompt: str | None = Field(
        default=None,
        description="of the photos in super-resolution stages; None is the instance prompt",
    )
    encoder_mode: EncoderMode = Field(
        default="auto", description="how the text encoder's weights are held"
    )
    embeddings: Path | None = Field(
        default=None, description="a store made by `cascade embed`, used instead of the encoder"
    )
    class_data_dir: Path | None = Field(
        default=None, description="where class images are kept; None is the user's cache"
    )
    stages: tuple[str, ...] = Field(default=(), description="which are tuned; none named is all")
    validation_prompts: tuple[str, ...] = ()
    validation_images: int = Field(default=4, gt=0)
    seed: int = 0
    recipe: Recipe
