"""Settings of DreamBooth (Ruiz et al. 2022)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cascade.config.base import Factor, Frozen, Looks, Pictures, Rows, Seed, Share
from cascade.config.encoder import Embeddings, EncoderMode
from cascade.config.stage import AugmentationLevel, SamplerConfig
from cascade.config.train import TrainConfig

AugmentationName = Literal["imagen", "dreambooth-reference", "dreambooth"]
MaskSource = Literal["auto", "alpha"]


class Augmentation(Frozen):
    """The noise put on the low-resolution picture while a stage is tuned, and when it samples."""

    training: tuple[AugmentationLevel, AugmentationLevel] = Field(
        description="the range that a row's level is drawn from"
    )
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

    images: Pictures = Field(default=1000, description="how many are drawn")
    batch_size: Rows = Field(default=16, description="class images or scenes drawn at once")
    sampler: SamplerConfig | None = Field(
        # Guidance off: eq. 2 samples from the model itself, and pictures sharpened by guidance
        # would be sharpened again whenever the tuned model samples what they show.
        default=SamplerConfig(name="ancestral", steps=100, guidance=1.0),
        description="how the base draws them; None is the checkpoint's own way, guidance off",
    )
    super_resolution: bool = Field(
        default=False,
        description="draw pictures for super-resolution stages too",
    )


class PriorConfig(DrawnConfig):
    """Class-specific prior preservation (DreamBooth section 3.3)."""

    weight: Factor = Field(
        default=1.0, description="weight of the class images' loss, lambda of eq. 2"
    )
    in_scenes: bool = Field(
        default=False,
        description="draw the class in the scenes too, by turns with the class alone, so that "
        "their words keep their meaning; the paper has none",
    )
    variations: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="draw the class like this too, by turns with the class alone: 'a cartoon of a "
        "{class_noun}'; the paper has none",
    )
    caption_dropout: Share = Field(
        default=0.0,
        description="share of class images trained on without their prompt: guidance subtracts the "
        "unconditional branch, which otherwise drifts to the subject; the paper states none",
    )


class Scene(Frozen):
    """A place where the subject or its class may stand."""

    phrase: str = Field(min_length=1, description="said after either: 'on the beach'")
    prompt: str = Field(min_length=1, description="what draws the place empty: 'a beach'")


class SceneRowsConfig(DrawnConfig):
    """Rows in which the cut-out subject stands in scenes that the frozen cascade draws."""

    share: Share = Field(
        default=0.0,
        description="share of the photos' rows that show the cut-out subject in scenes which the "
        "frozen cascade draws; 0 is off",
    )
    least_size: float = Field(
        default=0.45,
        strict=True,
        gt=0.0,
        le=1.0,
        description="longer side of the subject, of the picture's",
    )
    largest_size: float = Field(
        default=0.95, strict=True, gt=0.0, le=1.0, description="the same, at most"
    )
    spread: Share = Field(
        default=1.0,
        description="how far about the middle the subject stands: 0 there alone, 1 anywhere",
    )
    scene_weight: float = Field(
        default=1.0,
        strict=True,
        gt=0.0,
        le=1.0,
        description="how much the scene's pixels count in these rows, beside 1 on the subject",
    )

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Self:
        if self.least_size > self.largest_size:
            raise ValueError("the subject's least size is above its largest")
        return self


class MaskConfig(Frozen):
    """Learning the subject and not its background, by masks of the photos. The paper has none."""

    source: MaskSource | Path = Field(
        default="auto",
        description="where the subject is in the photos: their alpha channel, mask files in a "
        "folder (white on the subject), or what there is of each photo: NAME-masklabel.png beside "
        "it, its alpha channel, else a mask found by U2-Net-p",
    )
    unmasked_weight: float = Field(
        default=0.1,
        strict=True,
        gt=0.0,
        le=1.0,
        description="how much the background counts in the loss, beside 1 on the subject; the "
        "little that is left keeps halos away",
    )
    unmasked_probability: Share = Field(
        default=0.1,
        description="share of the photos' rows without their mask, whose pixels count alike",
    )
    scenes: SceneRowsConfig = Field(
        default=SceneRowsConfig(), description="the cut-out subject in scenes"
    )


class Recipe(Frozen):
    """Settings of a fine-tuning on a subject."""

    prior: PriorConfig | None = Field(
        default=PriorConfig(), description="class-specific prior preservation; None is off"
    )
    masks: MaskConfig | None = Field(
        default=None, description="learning the subject alone; None is plain DreamBooth"
    )
    scenes: tuple[Scene, ...] = Field(
        default=(),
        description="what is said after the subject or its class, and what draws the place empty: "
        "for class images in scenes, and for the cut-out subject",
    )
    base: TrainConfig = Field(description="the base's training")
    super_resolution: TrainConfig = Field(description="that of every super-resolution stage")
    augmentation: AugmentationName = Field(
        default="dreambooth",
        description="noise on the low-resolution photo: variance 1e-5 (dreambooth), 1e-3 "
        "(dreambooth-reference), or a random level (imagen)",
    )
    flip: bool = Field(default=False, description="mirror half of the photos' rows")
    center_crop: bool = Field(
        default=True, description="square photos about their middle; else at random"
    )

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
        """Return the prompts that name a thing in each of the scenes."""
        return tuple(f"{name} {scene.phrase}" for scene in self.scenes)

    def class_prompts(self, of_class: str, variations: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the class images' prompts, used by turns: the class, and it in each scene."""
        placed = self.in_scenes(of_class) if self.prior and self.prior.in_scenes else ()
        others = (*placed, *variations)
        return tuple(prompt for other in others for prompt in (of_class, other)) or (of_class,)


class DreamBoothConfig(Frozen):
    """One personalisation: which cascade, which subject, how, and where to."""

    cascade: str = Field(
        default="mini", description="the cascade to personalise: a folder, or 'mini'"
    )
    instance_data_dir: Path = Field(description="folder with 3 to 5 photos of the subject")
    output_dir: Path = Field(description="folder that becomes the new cascade")
    class_noun: str = Field(description="the subject's class: dog, backpack, ...")
    identifier: str | None = Field(
        default=None,
        description="the rare token [V]; picked from the vocabulary if left out",
    )
    instance_prompt: str = Field(
        default="a {identifier} {class_noun}", description="names the subject"
    )
    class_prompt: str = Field(default="a {class_noun}", description="names the class")
    sr_prompt: str | None = Field(
        default=None,
        description="what super-resolution is told of the photos, for instance 'a {class_noun}'; "
        "the instance prompt if left out",
    )
    encoder_mode: EncoderMode = "auto"
    embeddings: Embeddings = None
    class_data_dir: Path | None = Field(
        default=None,
        description="where class images and scenes are kept, else in the user's cache; pictures of "
        "your own in it are class images too, and only what is missing is drawn",
    )
    stages: tuple[str, ...] = Field(
        default=(), description="which to tune, comma-separated; all if left out"
    )
    validation_prompts: tuple[str, ...] = Field(
        default=(), description="may be repeated; the instance prompt if left out"
    )
    validation_images: Looks = Field(
        default=4, description="pictures of each, drawn at the end by all stages; 0 draws none"
    )
    validation_cascade: bool = Field(
        default=False,
        description="let the other stages complete the pictures that are drawn by the stage in "
        "training",
    )
    seed: Seed = Field(default=0, description="seed of everything random")
    recipe: Recipe = Field(description="how long and how hard; `recipe_of` knows the cascade's own")
