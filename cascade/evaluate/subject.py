"""Samples of a cascade that was tuned on a subject, and the evidence of its metrics.

Shapes: `N` pictures, `M` photos, `C H W` pixels in [-1, 1], `D` features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from cascade.config.evaluate import SubjectScoreConfig
from cascade.config.stage import SubjectConfig
from cascade.data.images import resize, square, to_tensors
from cascade.evaluate.alone import FindMask, alone, cut_out
from cascade.evaluate.enlargement import Pairs, make_pairs
from cascade.evaluate.features import FeatureExtractor
from cascade.evaluate.judge import Judge
from cascade.evaluate.judge_config import AttributeName
from cascade.pipeline import Cascade, CascadeOutput
from cascade.sampling import OnStep, sample_stage
from cascade.text.prompts import PromptTable

BEFORE: Final = "before"
"""The cascade that was tuned, as it was."""


@dataclass(frozen=True)
class Photos:
    """A subject's photos."""

    images: Sequence[Image.Image]  # those tuned on
    masks: Sequence[Image.Image] = ()  # grey, 255 on the subject; empty: no likeness is wanted
    held_out: Image.Image | None = None  # one kept out of the tuning

    @property
    def enlarged(self) -> Image.Image:
        """The photo that super-resolution is to give back."""
        return self.held_out or self.images[0]


@dataclass(frozen=True)
class Enlarged:
    """A photo beside its small twin, and what a super-resolution stage made of that, 1 C H W."""

    pair: Pairs
    picture: Tensor


@dataclass(frozen=True)
class Drawn:
    """Samples of one cascade; all cascades by the same seeds."""

    instance: CascadeOutput  # of the subject's prompt
    of_class: CascadeOutput
    elsewhere: Mapping[
        str, CascadeOutput
    ]  # of what the photos do not show, places first, by prompt
    enlarged: Mapping[str, Enlarged]  # a photo that was made small, by super-resolution stage


@dataclass(frozen=True)
class Means:
    """The networks that images are measured with."""

    extractor: FeatureExtractor
    find_mask: FindMask | None  # None where likeness is not wanted
    judge: Judge | None  # None where the cascade has none
    places: int  # how many prompts elsewhere are places


@dataclass(frozen=True)
class Evidence:
    """The evidence of a metric: one stage's images by one cascade."""

    stage: str
    drawn: Drawn
    photos: Photos
    means: Means
    untuned: "Evidence | None" = None  # of the cascade before; None where this is it

    @property
    def before(self) -> "Evidence":
        """The evidence of the cascade before."""
        return self.untuned or self

    @property
    def side(self) -> int:
        """Of the pictures, pixels."""
        return self.drawn.instance.stages[self.stage].shape[-1]

    @cached_property
    def instance(self) -> Tensor:
        """Features N D of the subject's prompt."""
        return self.means.extractor(self.drawn.instance.stages[self.stage])

    @cached_property
    def of_class(self) -> Tensor:
        """Features N D of the class's prompt."""
        return self.means.extractor(self.drawn.of_class.stages[self.stage])

    @cached_property
    def real(self) -> Tensor:
        """Features M D of the photos, as small as the pictures."""
        return self.means.extractor(photos_at(self.photos.images, self.side))

    @cached_property
    def cut_out(self) -> tuple[Tensor, Tensor] | None:
        """Features of the subject alone: cut out of pictures in new places, and of the photos."""
        places = list(self.drawn.elsewhere.values())[: self.means.places]
        if self.means.find_mask is None or not self.photos.masks or not places:
            return None
        pictures = torch.cat([some.stages[self.stage] for some in places])
        pairs = zip(self.photos.images, self.photos.masks, strict=True)
        photos = to_tensors([cut_out(photo, mask, self.side) for photo, mask in pairs])
        extractor = self.means.extractor
        return extractor(alone(pictures, self.means.find_mask)), extractor(photos)

    @cached_property
    def right(self) -> Mapping[AttributeName, float]:
        """The judge's share of right answers by what prompts elsewhere state."""
        judge, elsewhere = self.means.judge, self.drawn.elsewhere
        if judge is None or not elsewhere:
            return {}
        pictures = [some.stages[self.stage] for some in elsewhere.values()]
        counts = zip(elsewhere, map(len, pictures), strict=True)
        stated = [judge.stated(prompt) for prompt, count in counts for _ in range(count)]
        return judge.accuracy(torch.cat(pictures), stated)


def subject_prompts(subject: SubjectConfig) -> tuple[str, str]:
    """Return the subject's prompt `a [V] [class noun]` and the class's, `a [class noun]`."""
    return f"a {subject.identifier} {subject.class_noun}", f"a {subject.class_noun}"


def draw(
    cascade: Cascade,
    subject: SubjectConfig,
    photos: Photos,
    config: SubjectScoreConfig,
    on_step: OnStep | None = None,
) -> Drawn:
    """Draw everything that is measured of one cascade."""
    seeds = range(config.seed, config.seed + config.images)
    of_subject, of_class = subject_prompts(subject)
    named = f"{subject.identifier} {subject.class_noun}"
    elsewhere = [text.format(subject=named) for text in (*config.places, *config.changes)]
    several = seeds[: config.elsewhere]

    def drawn(prompts: Sequence[str], seeds: Sequence[int]) -> CascadeOutput:
        return cascade.sample(
            prompts,
            seeds,
            precision=config.precision,
            batch_size=config.batch_size,
            on_step=on_step,
        )

    parts: dict[str, CascadeOutput] = {}
    if several:
        together = drawn([p for p in elsewhere for _ in several], [*several] * len(elsewhere))
        split = {name: some.split(len(several)) for name, some in together.stages.items()}
        for number, prompt in enumerate(elsewhere):
            parts[prompt] = CascadeOutput({name: some[number] for name, some in split.items()})
    knows = subject in cascade.configs[0].subjects
    return Drawn(
        instance=drawn([of_subject] * len(seeds), seeds),
        of_class=drawn([of_class] * len(seeds), seeds),
        elsewhere=parts,
        enlarged=_enlarge(cascade, photos.enlarged, of_subject if knows else of_class, config),
    )


def _enlarge(
    cascade: Cascade, photo: Image.Image, prompt: str, config: SubjectScoreConfig
) -> dict[str, Enlarged]:
    """Make a photo small by each checkpoint's own kernel and let its stage enlarge it."""
    found = {}
    for stage in cascade.stages:
        if stage.config.low_res is not None:
            pair = make_pairs([photo], stage.config, stage.config.size)
            sampler = stage.config.sampler.model_copy(update={"precision": config.precision})
            table = PromptTable.build(cascade.encoder, [prompt], stage.config.text)
            large = sample_stage(stage, table, [prompt], [0], low_res=pair.low, sampler=sampler)
            found[stage.config.name] = Enlarged(pair, large)
    return found


def photos_at(photos: Sequence[Image.Image], size: int) -> Tensor:
    """Square photos and make them as small as a stage's pictures, N C size size."""
    return to_tensors([resize(square(photo), size, "bicubic") for photo in photos])
