"""One comparison: a cascade tuned on a subject in several ways, beside the untouched one."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image
from rich.console import Console

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.stage import StageConfig, SubjectConfig
from cascade.data.images import read_image
from cascade.dreambooth.masks import read_masks
from cascade.dreambooth.personalise import SHEET, personalise
from cascade.environment import usable_device
from cascade.evaluate.features import EfficientNetLite0, FeatureExtractor
from cascade.evaluate.subject import (
    Drawn,
    Reconstruction,
    SubjectScores,
    ceiling,
    draw_subject,
    of_the_way,
    reconstruct,
    score_subject,
    subject_prompts,
)
from cascade.pipeline import Cascade
from cascade.progress import progress_bar, stage_steps
from cascade.train.report import read_log
from elsewhere import Elsewhere, accuracy, elsewhere, likeness
from kinds import AFTER, BEFORE, recipe_of, shortened
from tuning import draw_in_advance, load, stage_configs, training_seconds
from work import Work

console = Console()
SEEDS = range(6)


@dataclass(frozen=True)
class Comparison:
    """Kinds of tuning on one subject, beside the untouched cascade.

    Attributes:
        work: the subject.
        counts: the kinds, and of each the pictures to draw of every prompt elsewhere.
        seed: of the tuning.
        others_share: how many of the recipe's steps the kinds beside it take.
    """

    work: Work
    counts: Mapping[str, int]
    seed: int = 0
    others_share: float = 1.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are tuned, those apart that leave out what the recipe does not have."""
        recipe = self.work.recipe
        others = [kind for kind in self.counts if kind not in (BEFORE, AFTER)]
        return (*(kind for kind in others if recipe_of(kind, recipe) != recipe), AFTER)

    def config(self, kind: str) -> DreamBoothConfig:
        """How a kind is tuned: every stage, or for comparison the base alone."""
        work, name = self.work, kind.lower().replace(" ", "-")
        recipe = recipe_of(kind, work.recipe)
        return DreamBoothConfig(
            cascade=work.cascade,
            instance_data_dir=work.folder / "photos",
            output_dir=work.folder / (f"{name}-{self.seed}" if self.seed else name),
            class_noun=work.class_noun,
            class_data_dir=work.class_images,
            stages=() if kind == AFTER else (stage_configs(work.cascade)[0].name,),
            seed=self.seed,
            validation_images=0,  # the report draws its own
            recipe=recipe if kind == AFTER else shortened(recipe, self.others_share),
        )


@dataclass(frozen=True)
class Outcome:
    """Everything a comparison found.

    Attributes:
        subject: identifier and class noun.
        photos: those tuned on.
        held_out: a photo kept out of the tuning, if there were enough.
        drawn: pictures of the subject's and the class's prompt, by the kind of cascade.
        masks: the sheet of the photos' masks; None where the recipe has none.
        elsewhere: pictures of prompts with something that the photos do not show, by the kind of
            cascade, then by prompt.
        accuracy: of those, the judge's share of right answers by kind and by what prompts state;
            empty where there is no judge.
        likeness: how far the subject alone came there, percent of the way by kind, in the base's
            pictures; empty where the recipe has no masks.
        reconstructions: by super-resolution stage, a photo enlarged by it untuned and tuned.
        scores: by stage, then by the kind of cascade.
        ceilings: the photos' own similarity, by stage.
        logs: training logs by run; the runs with prior preservation by their stage's name.
        times: seconds by part.
    """

    subject: SubjectConfig
    photos: Sequence[Image.Image]
    held_out: Image.Image | None
    drawn: Mapping[str, Drawn]
    masks: Image.Image | None
    elsewhere: Elsewhere
    accuracy: Mapping[str, Mapping[str, float]]
    likeness: Mapping[str, float | None]
    reconstructions: Mapping[str, tuple[Reconstruction, Reconstruction]]
    scores: Mapping[str, Mapping[str, SubjectScores]]
    ceilings: Mapping[str, float]
    logs: Mapping[str, Sequence[Mapping[str, float]]]
    times: Mapping[str, float]

    @property
    def prompts(self) -> tuple[str, str]:
        """The subject's and the class's."""
        return subject_prompts(self.subject)

    @property
    def shown_photo(self) -> Image.Image:
        """The photo that was enlarged: the one held out, if there is one."""
        return self.held_out or self.photos[0]

    def of_the_way(self, stage: str, kind: str = AFTER) -> float | None:
        """How far a cascade's pictures came from the untouched one's to the photos, percent."""
        floor = self.scores[stage][BEFORE].similarity
        return of_the_way(self.scores[stage][kind].similarity, floor, self.ceilings[stage])


def run(comparison: Comparison) -> Outcome:
    """Tune the cascade in every way, and compare all with the untouched one."""
    console.rule("class images and scenes")
    # Those that are there were drawn for another subject of the class.
    times = draw_in_advance(comparison.config(AFTER))
    cascades = {BEFORE: load(comparison.work.cascade)}
    for kind in comparison.kinds:
        console.rule(f"tuning: {kind}")
        cascades[kind] = load(personalise(comparison.config(kind)))
    logs = dict(run_logs(comparison))
    times |= {f"tuning {run}": training_seconds(log) for run, log in logs.items()}
    with timed(times, "drawing and scoring the comparison"):
        return compare(comparison, cascades, logs, times)


def run_logs(comparison: Comparison) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """The statuses of every training run, by stage."""
    for kind in comparison.kinds:
        for stage in stage_configs(comparison.work.cascade):
            log = read_log(comparison.config(kind).output_dir / "runs" / stage.name / "log.jsonl")
            if log:
                yield stage.name if kind == AFTER else f"{stage.name} {kind}", log


@contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Note how many seconds the block takes, and say what it does."""
    console.rule(name)
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


def compare(
    comparison: Comparison,
    cascades: Mapping[str, Cascade],
    logs: dict[str, list[dict[str, float]]],
    times: dict[str, float],
) -> Outcome:
    """Draw the same seeds with every cascade and score them."""
    work = comparison.work
    frozen, tuned = cascades[BEFORE], cascades[AFTER]
    configs = [stage.config for stage in tuned.stages]
    subject = configs[0].subjects[-1]
    drawn = dict(drawings(cascades, subject))
    extractor = EfficientNetLite0(usable_device(None))
    photos = work.photos.images
    pictures = elsewhere(cascades, subject, comparison.counts, console)
    return Outcome(
        subject=subject,
        photos=photos,
        held_out=work.held_out,
        drawn=drawn,
        masks=read_image(comparison.config(AFTER).output_dir / SHEET)
        if work.recipe.masks
        else None,
        elsewhere=pictures,
        accuracy=accuracy(work.cascade, pictures),
        likeness=_likeness(work, pictures, configs[0].name, extractor),
        reconstructions={
            stage.name: reconstructions(work, (frozen, tuned), stage, extractor)
            for stage in configs
            if stage.low_res is not None
        },
        scores={
            stage.name: {
                kind: score_subject(shown, drawn[BEFORE], photos, extractor, stage.name)
                for kind, shown in drawn.items()
            }
            for stage in configs
        },
        ceilings={stage.name: ceiling(photos, extractor, stage.size) for stage in configs},
        logs=logs,
        times=times,
    )


def _likeness(
    work: Work, pictures: Elsewhere, stage: str, extractor: FeatureExtractor
) -> dict[str, float | None]:
    if work.recipe.masks is None:
        return {}
    masks = read_masks(work.photos, work.recipe.masks.source)
    return likeness(pictures, work.photos.images, masks, stage, extractor)


def reconstructions(
    work: Work, cascades: tuple[Cascade, Cascade], stage: StageConfig, extractor: FeatureExtractor
) -> tuple[Reconstruction, Reconstruction]:
    """One photo enlarged by the untuned and by the tuned super-resolution stage."""
    subject = cascades[1].stages[0].config.subjects[-1]
    shown = [work.held_out or work.photos.images[0]]
    of_subject, of_class = subject_prompts(subject)
    untuned, tuned = (
        reconstruct(cascade, stage.name, shown, prompt, extractor)
        for cascade, prompt in zip(cascades, (of_class, of_subject), strict=True)
    )
    return untuned, tuned


def drawings(
    cascades: Mapping[str, Cascade], subject: SubjectConfig
) -> Iterator[tuple[str, Drawn]]:
    """The subject's and the class's prompt, drawn by each cascade with the same seeds."""
    with progress_bar(console) as bar:
        for kind, cascade in cascades.items():
            yield kind, draw_subject(cascade, subject, SEEDS, stage_steps(bar, f"{kind}: "))
