"""The subject: its photos, its identifier and the prompts that name it."""

from dataclasses import dataclass

from PIL import Image

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.stage import StageConfig, SubjectConfig
from cascade.data.images import Photos, read_photos
from cascade.dreambooth.masks import Mask, read_masks
from cascade.errors import UserError
from cascade.text.identifier import check_identifier, find_identifiers
from cascade.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Subject:
    """What a cascade is personalised on.

    Attributes:
        photos: the 3 to 5 pictures of the subject.
        masks: where it is in each; empty where masks are not used.
        config: the identifier and the class noun, as the checkpoints record them.
        instance_prompt: names the subject, `a [V] [class noun]`.
        sr_prompt: what super-resolution stages are told of the photos; need not name the subject.
        class_prompt: names its class, `a [class noun]`.
        class_prompts: what class images show that are drawn, by turns.
    """

    photos: Photos
    masks: tuple[Mask, ...]
    config: SubjectConfig
    instance_prompt: str
    sr_prompt: str
    class_prompt: str
    class_prompts: tuple[str, ...]

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The photos, decoded."""
        return self.photos.images


def read_subject(
    config: DreamBoothConfig, stages: list[StageConfig], tokenizer: Tokenizer
) -> Subject:
    """Read the photos and settle the identifier.

    Args:
        config: the run's settings.
        stages: those that will be tuned; photos must be as large as the largest.
        tokenizer: the cascade's, which the identifier must survive.

    Raises:
        UserError: there are no usable photos or masks, or the identifier or the prompts cannot
            work.
    """
    photos = read_photos(config.instance_data_dir, max(stage.size for stage in stages))
    noun = config.class_noun.strip()
    if not noun:
        raise UserError("The class noun is empty; give the subject's class, for instance 'dog'.")
    cleaning = stages[0].text.cleaning
    if config.identifier is None:
        identifier = find_identifiers(tokenizer, cleaning, count=1, seed=config.seed)[0]
    else:
        identifier = config.identifier.strip()
    check_identifier(tokenizer, cleaning, identifier, noun)
    instance_prompt = _fill(config.instance_prompt, identifier, noun, needs="{identifier}")
    class_prompt = _fill(config.class_prompt, identifier, noun, needs=None)
    masked, prior = config.recipe.masks, config.recipe.prior
    templates = () if prior is None else prior.variations
    variations = [_fill(template, identifier, noun, needs=None) for template in templates]
    return Subject(
        photos=photos,
        masks=() if masked is None else read_masks(photos, masked.source),
        config=SubjectConfig(identifier=identifier, class_noun=noun),
        instance_prompt=instance_prompt,
        sr_prompt=(
            instance_prompt
            if config.sr_prompt is None
            else _fill(config.sr_prompt, identifier, noun, needs=None)
        ),
        class_prompt=class_prompt,
        class_prompts=config.recipe.class_prompts(class_prompt, variations),
    )


def _fill(template: str, identifier: str, noun: str, needs: str | None) -> str:
    try:
        prompt = template.format(identifier=identifier, class_noun=noun)
    except (KeyError, IndexError, ValueError):
        raise UserError(
            f"The prompt '{template}' has a placeholder that is not known; "
            "use {identifier} and {class_noun}."
        ) from None
    words, name = prompt.split(), identifier.split()
    places = range(len(words) - len(name) + 1)
    if needs is not None and not any(words[i : i + len(name)] == name for i in places):
        raise UserError(
            f"The instance prompt '{prompt}' does not name the subject; put {needs} (here "
            f"'{identifier}') into it as a word of its own."
        )
    return prompt
