"""The subject: its photos, its identifier and the prompts that name it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.stage import StageConfig, SubjectConfig
from cascade.data.images import Photos, read_photos
from cascade.dreambooth.masks import Mask, read_masks
from cascade.dreambooth.naming import fill, require_kept, require_named, settle_names
from cascade.text.tokenizer import Tokenizer

# Sides of the largest stage that are kept of a photo's shorter one, and pixels at least: masks are
# found in it (at 320 pixels), and what they cut out is never enlarged. A row made of it is 0.4 grey
# levels from one of all pixels (RMS, 106 photos of 512 pixels at 64 and 32).
_SIDES: Final = 4
_LEAST: Final = 1024


@dataclass(frozen=True)
class Subject:
    """The subject that a cascade is personalised on.

    Attributes:
        photos: the 3 to 5 pictures of the subject.
        masks: where it is in each; empty where masks are not used.
        config: the identifier and the class noun, as the checkpoints record them.
        instance_prompt: names the subject, `a [V] [class noun]`.
        sr_prompt: what super-resolution stages are told of the photos; need not name the subject.
        class_prompt: names its class, `a [class noun]`.
        class_prompts: what class images show that are drawn, by turns.
        validation_prompts: what the run draws of itself.
    """

    photos: Photos
    masks: tuple[Mask, ...]
    config: SubjectConfig
    instance_prompt: str
    sr_prompt: str
    class_prompt: str
    class_prompts: tuple[str, ...]
    validation_prompts: tuple[str, ...]

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The photos, decoded and no larger than the stages need."""
        return self.photos.images


def read_subject(
    config: DreamBoothConfig,
    stages: Sequence[StageConfig],
    known: Sequence[SubjectConfig],
    tokenizer: Tokenizer,
) -> Subject:
    """Read the photos and settle what the subject is called."""
    conventions = list(dict.fromkeys(stage.text for stage in stages))
    called = settle_names(config, conventions, known, tokenizer)
    instance_prompt = fill(config.instance_prompt, called)
    require_named(instance_prompt, called, conventions[0], tokenizer)
    sr_prompt = instance_prompt if config.sr_prompt is None else fill(config.sr_prompt, called)
    class_prompt = fill(config.class_prompt, called)
    recipe = config.recipe
    variations = [fill(one, called) for one in (recipe.prior.variations if recipe.prior else ())]
    class_prompts = recipe.class_prompts(class_prompt, variations)
    in_scenes = [scene for name in (instance_prompt, sr_prompt) for scene in recipe.in_scenes(name)]
    said = [instance_prompt, sr_prompt, class_prompt]
    said += class_prompts if recipe.prior else ()
    said += in_scenes if recipe.scene_rows else ()
    require_kept(said, called, conventions, tokenizer)
    largest = max(stage.size for stage in stages)
    photos = read_photos(config.instance_data_dir, largest, max(_SIDES * largest, _LEAST))
    return Subject(
        photos=photos,
        masks=() if recipe.masks is None else read_masks(photos, recipe.masks.source),
        config=called,
        instance_prompt=instance_prompt,
        sr_prompt=sr_prompt,
        class_prompt=class_prompt,
        class_prompts=class_prompts,
        validation_prompts=tuple(fill(prompt, called) for prompt in config.validation_prompts),
    )
