"""Scores of a personalised cascade: does it know the subject, and does it still know the class?

Shapes: `N` pictures, `C H W` pixels in [-1, 1], `D` features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from cascade.config.stage import SamplerConfig, SubjectConfig
from cascade.data.images import resize, square, to_tensors
from cascade.evaluate.features import FeatureExtractor
from cascade.evaluate.metrics import (
    diversity,
    feature_distance,
    prior_drift,
    prior_similarity,
    psnr,
    self_similarity,
    subject_similarity,
)
from cascade.pipeline import Cascade, Pictures
from cascade.sampling import OnStep, prompt_table, sample_stage


@dataclass(frozen=True)
class Drawn:
    """Pictures of one cascade by the same seeds: of the subject's prompt, and of the class's."""

    instance: Pictures
    of_class: Pictures


@dataclass(frozen=True)
class SubjectScores:
    """Cosines of features; see `cascade.evaluate.metrics` for each.

    Attributes:
        similarity: subject prompt against the photos; higher is better.
        prior_similarity: class prompt against the photos (PRES); lower is better.
        diversity: among class-prompt pictures (DIV); higher is better.
        subject_diversity: among subject-prompt pictures, DreamBooth's own use of DIV.
        drift: class-prompt pictures against the frozen cascade's by the same seeds; lower is
            better.
    """

    similarity: float
    prior_similarity: float
    diversity: float
    subject_diversity: float
    drift: float


def subject_prompts(subject: SubjectConfig) -> tuple[str, str]:
    """The subject's prompt `a [V] [class noun]` and the class's, `a [class noun]`."""
    return f"a {subject.identifier} {subject.class_noun}", f"a {subject.class_noun}"


def draw_subject(
    cascade: Cascade,
    subject: SubjectConfig,
    seeds: Sequence[int],
    on_step: OnStep | None = None,
    *,
    samplers: Mapping[str, SamplerConfig] | None = None,
    last_stage: str | None = None,
) -> Drawn:
    """Draw the subject's and the class's prompt, one picture of each per seed.

    Args:
        cascade: draws.
        subject: whom the prompts name.
        seeds: of the pictures.
        on_step: told about progress, as in `Cascade.sample`.
        samplers: stage name to sampler settings, where they differ from the checkpoint's.
        last_stage: stop after this stage.
    """
    instance, of_class = (
        cascade.sample(prompt, seeds, samplers=samplers, last_stage=last_stage, on_step=on_step)
        for prompt in subject_prompts(subject)
    )
    return Drawn(instance, of_class)


def score_subject(
    drawn: Drawn,
    frozen: Drawn,
    photos: Sequence[Image.Image],
    extractor: FeatureExtractor,
    stage: str,
) -> SubjectScores:
    """Score one stage's pictures against photos made as small as they are.

    Args:
        drawn: of the cascade to score.
        frozen: of the cascade it was made from, by the same seeds.
        photos: of the subject.
        extractor: gives the features.
        stage: whose pictures are scored.
    """
    pictures = drawn.instance.stages[stage]
    real = extractor(photos_at(photos, pictures.shape[-1]))
    instance, of_class = extractor(pictures), extractor(drawn.of_class.stages[stage])
    return SubjectScores(
        similarity=subject_similarity(instance, real),
        prior_similarity=prior_similarity(of_class, real),
        diversity=diversity(of_class),
        subject_diversity=diversity(instance),
        drift=prior_drift(of_class, extractor(frozen.of_class.stages[stage])),
    )


def ceiling(photos: Sequence[Image.Image], extractor: FeatureExtractor, size: int) -> float:
    """How similar the photos are to each other at a size: what no sample can be asked to beat."""
    return self_similarity(extractor(photos_at(photos, size)))


def of_the_way(similarity: float, floor: float, ceiling: float) -> float | None:
    """How far a similarity is from the untuned cascade's to the photos' own, percent.

    Args:
        similarity: of the tuned cascade's pictures to the photos.
        floor: of the untuned cascade's, by the same prompt and seeds: 0 percent.
        ceiling: of the photos to each other: 100 percent.

    Returns:
        Percent, below 0 where tuning led away; None where floor and ceiling leave no way to go.
    """
    return 100 * (similarity - floor) / (ceiling - floor) if ceiling > floor else None


def photos_at(photos: Sequence[Image.Image], size: int) -> Tensor:
    """Photos squared and made as small as a stage's pictures, N C size size."""
    return to_tensors([resize(square(photo), size, "bicubic") for photo in photos])


@dataclass(frozen=True)
class Reconstruction:
    """Photos made small and enlarged again by a super-resolution stage.

    Attributes:
        low_res: what was enlarged, N C h w.
        pictures: N C H W.
        psnr: against the photos, dB; higher is better.
        feature_distance: against the photos, 1 - cosine; lower is better.
    """

    low_res: Tensor
    pictures: Tensor
    psnr: float
    feature_distance: float


def reconstruct(
    cascade: Cascade,
    stage_name: str,
    photos: Sequence[Image.Image],
    prompt: str,
    extractor: FeatureExtractor,
) -> Reconstruction:
    """Make photos small with the checkpoint's own kernel and let the stage enlarge them."""
    stage = cascade.stage(stage_name)
    if stage.config.low_res is None:
        raise ValueError(f"stage '{stage_name}' is a base stage; it enlarges nothing")
    squares = [square(photo) for photo in photos]
    sizes = (stage.config.size, stage.config.low_res.size)
    high, low = (
        to_tensors([resize(photo, size, stage.config.resize) for photo in squares])
        for size in sizes
    )
    table = prompt_table(cascade.encoder, [prompt], stage.config)
    pictures = sample_stage(stage, table, [prompt] * len(low), range(len(low)), low_res=low)
    return Reconstruction(
        low_res=low,
        pictures=pictures,
        psnr=psnr(pictures, high),
        feature_distance=feature_distance(extractor(pictures), extractor(high)),
    )
