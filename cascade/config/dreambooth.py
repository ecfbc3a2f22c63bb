"""Settings of DreamBooth (Ruiz et al. 2022), and the recipes known to work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cascade.config.base import Factor, Frozen, Looks, Pictures, Rows, Seed, Share
from cascade.config.encoder import EncoderMode
from cascade.config.stage import AugmentationLevel, RecipeName, SamplerConfig, ThresholdConfig
from cascade.config.train import ObjectiveConfig, OptimizerConfig, TrainConfig

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


class DrawnConfig(Frozen):
    """Pictures that the frozen cascade draws before it is tuned: how many, and how."""

    images: Pictures = 1000
    batch_size: Rows = 16
    sampler: SamplerConfig | None = Field(
        # Guidance off: eq. 2 samples from the model itself, and pictures sharpened by guidance
        # would be sharpened again whenever the tuned model samples what they show.
        default=SamplerConfig(name="ancestral", steps=100, guidance=1.0),
        description="how the base draws them; None is the checkpoint's own way, guidance off",
    )
    super_resolution: bool = Field(
        default=False, description="drawn and used for super-resolution stages too"
    )


class PriorConfig(DrawnConfig):
    """Class-specific prior preservation (DreamBooth section 3.3)."""

    weight: Factor = Field(default=1.0, description="lambda of eq. 2")
    in_scenes: bool = Field(
        default=False,
        description="the class is drawn in the recipe's scenes too, by turns with the class alone, "
        "so that the words keep their meaning. The paper has none",
    )
    variations: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="the class in other styles, other colours, with something on: templates with "
        "{class_noun}, drawn by turns with the class alone. The paper has none",
    )
    caption_dropout: Share = Field(
        default=0.0,
        description="share of class images trained on without their prompt; guidance subtracts the "
        "unconditional branch, which otherwise drifts to the subject. The paper states none",
    )


class Scene(Frozen):
    """A place where the subject or its class may stand."""

    phrase: str = Field(min_length=1, description="said after either: 'on the beach'")
    prompt: str = Field(min_length=1, description="what draws the place empty: 'a beach'")


class SceneRowsConfig(DrawnConfig):
    """Rows in which the cut-out subject stands in scenes that the frozen cascade draws."""

    share: Share = Field(default=0.0, description="of the photos' rows; 0 is off")
    least_size: float = Field(
        default=0.45,
        strict=True,
        gt=0.0,
        le=1.0,
        description="longer side of the subject, of the picture's",
    )
    largest_size: float = Field(default=0.95, strict=True, gt=0.0, le=1.0)
    spread: Share = Field(
        default=1.0,
        description="how far about the middle the subject stands: 0 there alone, 1 anywhere",
    )
    scene_weight: float = Field(
        default=1.0,
        strict=True,
        gt=0.0,
        le=1.0,
        description="weight of the scene's pixels in these rows, beside 1 on the subject",
    )

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Self:
        if self.least_size > self.largest_size:
            raise ValueError("the subject's least size is above its largest")
        return self


class MaskConfig(Frozen):
    """Learning the subject and not its background, by masks of the photos. The paper has none."""

    source: Literal["auto", "alpha"] | Path = Field(
        default="auto",
        description="a folder of mask files, the photos' alpha channel, or what there is of each "
        "photo: a mask file beside it, its alpha channel, else a mask found by U2-Net-p",
    )
    unmasked_weight: float = Field(
        default=0.1,
        strict=True,
        gt=0.0,
        le=1.0,
        description="least weight of a pixel in the loss, beside 1 on the subject; the little that "
        "is left outside keeps halos away",
    )
    unmasked_probability: Share = Field(
        default=0.1,
        description="share of the photos' rows whose pixels count alike",
    )
    scenes: SceneRowsConfig = SceneRowsConfig()


class Recipe(Frozen):
    """How long and how hard a cascade is tuned on a subject."""

    prior: PriorConfig | None = PriorConfig()
    masks: MaskConfig | None = None
    scenes: tuple[Scene, ...] = Field(
        default=(), description="for class images in scenes, and for the cut-out subject"
    )
    base: TrainConfig
    super_resolution: TrainConfig
    augmentation: AugmentationName = "dreambooth"
    flip: bool = Field(default=False, description="mirror half of the photos' rows")
    center_crop: bool = Field(default=True, description="else a random square of each photo")

    @model_validator(mode="after")
    def _scenes_are_named(self) -> Self:
        wanted = self.scene_rows or (self.prior and self.prior.in_scenes)
        if wanted and not self.scenes:
            raise ValueError(
                "class images or the subject in scenes need a list of scenes; name some"
            )
        return self

    @property
    def scene_rows(self) -> SceneRowsConfig | None:
        """How rows with the subject in scenes are made; None where there are none."""
        return self.masks.scenes if self.masks and self.masks.scenes.share > 0 else None

    def in_scenes(self, name: str) -> tuple[str, ...]:
        """What names a thing in each of the scenes."""
        return tuple(f"{name} {scene.phrase}" for scene in self.scenes)

    def class_prompts(self, of_class: str, variations: Sequence[str] = ()) -> tuple[str, ...]:
        """What the class images show, by turns: the class, and it in a scene or another variation.

        Args:
            of_class: names the class.
            variations: the prior's, filled in.
        """
        placed = self.in_scenes(of_class) if self.prior and self.prior.in_scenes else ()
        others = (*placed, *variations)
        return tuple(prompt for other in others for prompt in (of_class, other)) or (of_class,)


def _tuning(
    learning_rate: float,
    steps: int,
    batch_size: int,
    accumulation: int = 1,
    schedule: Literal["constant", "linear"] = "constant",
    warmup_steps: int = 0,
) -> TrainConfig:
    optimizer = OptimizerConfig(
        learning_rate=learning_rate,
        weight_decay=1e-2,
        schedule=schedule,
        warmup_steps=warmup_steps,
    )
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        optimizer=optimizer,
    )


# Places that `mini` can draw, as its captions call them.
MINI_SCENES = tuple(
    Scene(phrase=phrase, prompt=prompt)
    for phrase, prompt in (
        ("on the beach", "a beach"),
        ("in the snow", "snow"),
        ("with a mountain in the background", "mountains"),
        ("in the forest", "a forest"),
        ("in the jungle", "a jungle"),
        ("in the desert", "a desert"),
        ("on the grass", "a meadow"),
        ("in space", "space"),
        ("with a city in the background", "a city"),
        ("in the city at night", "a city at night"),
        ("on a cobblestone street", "a cobblestone street"),
        ("on a wooden table", "a wooden table"),
        ("on top of a wooden floor", "a wooden floor"),
        ("in a living room", "a living room"),
        ("on top of pink fabric", "pink fabric"),
        ("under water", "the bottom of the sea"),
        ("floating on top of water", "water"),
        ("at sunset", "a sunset"),
        ("with a tree and autumn leaves in the background", "autumn leaves"),
        *(
            (f"on a {colour} background", f"a {colour} background")
            for colour in ("blue", "green", "red", "yellow", "white")
        ),
    )
)

# What else its captions say of things.
MINI_VARIATIONS = (
    *(f"{style} of a {{class_noun}}" for style in ("a cartoon", "a flat drawing", "a 3d render")),
    *(f"a {colour} {{class_noun}}" for colour in ("red", "green", "blue", "purple")),
    *(
        f"a {{class_noun}} wearing {worn}"
        for worn in ("a top hat", "a crown", "a scarf", "sunglasses")
    ),
)

# As the checkpoint samples, guided: unguided, so small a network draws no class worth keeping.
# Twelve steps are enough for 64 pixels, and a CPU waits for each.
_MINI_DRAWS = SamplerConfig(
    name="dpmpp_2m",
    steps=12,
    guidance=3.0,
    precision="auto",
    threshold=ThresholdConfig(kind="dynamic", percentile=0.95, cap=1.5),
)

RECIPES: dict[RecipeName, Recipe] = {
    # DreamBooth section 3.3: rate 1e-5, 1000 steps, lambda 1, about 1000 class images. One photo
    # and one class image a step is the reading under which the numbers of both versions of the
    # paper agree. The optimizer is not stated.
    "paper": Recipe(base=_tuning(1e-5, 1000, 1), super_resolution=_tuning(1e-5, 1000, 1)),
    # For the few million weights of `mini`, which move further at a step of this size.
    "mini": Recipe(
        prior=PriorConfig(
            images=2 * (len(MINI_SCENES) + len(MINI_VARIATIONS)),
            in_scenes=True,
            variations=MINI_VARIATIONS,
            batch_size=len(MINI_SCENES),
            caption_dropout=0.25,
            sampler=_MINI_DRAWS,
        ),
        masks=MaskConfig(
            scenes=SceneRowsConfig(
                share=0.6,
                # A few poses of about one size and place: so small a network, tuned so shortly,
                # else learns the subject's texture and not its shape.
                least_size=0.65,
                largest_size=0.8,
                spread=0.2,
                scene_weight=0.25,
                images=2 * len(MINI_SCENES),
                batch_size=len(MINI_SCENES),
                sampler=SamplerConfig(steps=32, guidance=1.0, precision="auto"),
            ),
        ),
        scenes=MINI_SCENES,
        # Weighting and even timesteps as in its own training; an average of the last steps. Warmed
        # up: AdamW's first steps move every weight by the whole rate, and the class is lost.
        base=_tuning(3e-4, 375, 8, schedule="linear", warmup_steps=30).model_copy(
            update={
                "objective": ObjectiveConfig(weighting="min_snr"),
                "stratified": True,
                "ema_decay": 0.98,
                "precision": "auto",
            }
        ),
        super_resolution=_tuning(5e-4, 250, 4, schedule="linear").model_copy(
            update={"precision": "auto"}
        ),
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
        default=None,
        description="where what the frozen cascade draws is kept; None is the user's cache",
    )
    stages: tuple[str, ...] = Field(default=(), description="which are tuned; none named is all")
    validation_prompts: tuple[str, ...] = ()
    validation_images: Looks = Field(
        default=4, description="drawn of each validation prompt at the end, and on the way"
    )
    seed: Seed = 0
    recipe: Recipe
