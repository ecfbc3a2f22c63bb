"""One setting tried on one subject: tuned, drawn and scored.

What does not depend on the setting is made once: the untouched cascade's pictures, and for
super-resolution and sampling the recipe's tuned base and its pictures.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.stage import SubjectConfig
from cascade.dreambooth.personalise import personalise
from cascade.environment import usable_device
from cascade.evaluate.features import EfficientNetLite0
from cascade.evaluate.subject import Drawn, SubjectScores, ceiling, of_the_way, score_subject
from cascade.pipeline import Cascade
from cascade.train.report import read_log
from comparison import SEEDS
from sweeping.drawing import SHOWN, draw_base, enlarge, kept, show
from sweeping.knobs import Part, Settings, key_of
from sweeping.nouns import share_seen
from tuning import training_seconds
from work import Work


@dataclass(frozen=True)
class Finding:
    """What a setting did to a subject.

    Attributes:
        of_the_way: from the untouched cascade's similarity to the photos' own, percent.
        floor: similarity of the untouched cascade's pictures, by the same sampler and seeds.
        ceiling: the photos' similarity to each other.
        scores: see `cascade.evaluate.subject`.
        seen: share of class pictures in which a classifier sees the class, if it knows the noun.
        seen_before: the same of the untouched cascade's.
        tuning_seconds: of the part's training steps; None where nothing was tuned.
        drawing_seconds: of the part's stages, a picture.
    """

    of_the_way: float | None
    floor: float
    ceiling: float
    scores: SubjectScores
    seen: float | None
    seen_before: float | None
    tuning_seconds: float | None
    drawing_seconds: float

    def figures(self) -> dict[str, float | None]:
        """All of them on one level."""
        figures = asdict(self)
        scores: dict[str, float | None] = figures.pop("scores")
        return figures | scores


class Bench:
    """A cascade and the part of it that is swept: tries settings on subjects.

    Attributes:
        part: what is swept.
        stages: names of those that are drawn, base first; the last one's pictures are scored.
    """

    def __init__(self, cascade: str, part: Part, stages: Sequence[str], console: Console) -> None:
        self.part, self.stages = part, tuple(stages)
        self._console = console
        self._device = usable_device(None)
        self._untouched = Cascade.load(cascade, self._device)
        # With their settings: how a stage samples shows in every picture, and in its file's hash.
        self._weights = key_of(
            [
                [stage.fingerprint(), stage.config.model_dump(mode="json")]
                for stage in self._untouched.stages
            ]
        )
        self._extractor = EfficientNetLite0(self._device)

    def key(self, work: Work, settings: Settings) -> str:
        """A name for everything that the outcome of a setting depends on."""
        used = settings.used(self.part)
        return key_of([self._weights, self.part, self.stages, work.folder.name, used])

    def shown(self, work: Work, settings: Settings | None) -> list[Path]:
        """Where pictures of a setting are kept to be looked at; None is the untouched cascade."""
        name = self._weights if settings is None else self.key(work, settings)
        folder = work.folder / "shown" / f"{self.stages[-1]}-{name}"
        return [folder / f"{number}.png" for number in range(sum(SHOWN))]

    def try_setting(self, work: Work, settings: Settings, start: Settings) -> Finding:
        """Tune, draw and score; what was tuned is removed again.

        Args:
            work: the subject.
            settings: to try.
            start: the recipe. The base tuned by it is kept, for the other parts too.
        """
        folder = self._tune_base(work, settings)
        base = Cascade.load(folder, self._device)
        subject = base.stages[0].config.subjects[-1]
        before = self._draw_untouched(work, settings, subject)
        tuning: float | None = None
        if self.part is Part.super_resolution:
            drawn, tuning, drawing = self._tune_enlarging(work, settings, folder, subject)
        else:
            begin = time.perf_counter()
            drawn = draw_base(base, subject, settings.sampler, self._console)
            drawing = time.perf_counter() - begin
            if self.part is Part.base:
                tuning = _step_seconds(folder, self.stages)
        if folder != self._base_folder(work, start):
            shutil.rmtree(folder)
        show(drawn, self.shown(work, settings))
        if settings.sampler == start.sampler:
            show(before, self.shown(work, None))
        return self._score(work, before, drawn, tuning, drawing / (2 * len(SEEDS)))

    def _tune_base(self, work: Work, settings: Settings) -> Path:
        """Tune the base alone, unless that is done, into a complete cascade."""
        # What is not tuned here gets fixed values: a run is known by all its settings.
        unused = {"super_resolution": settings.recipe.base, "augmentation": "dreambooth"}
        return personalise(
            DreamBoothConfig(
                cascade=work.cascade,
                instance_data_dir=work.folder / "photos",
                output_dir=self._base_folder(work, settings),
                class_noun=work.class_noun,
                class_data_dir=work.class_images,
                stages=self.stages[:1],
                validation_images=0,
                recipe=settings.recipe.model_copy(update=unused),
            )
        )

    def _base_folder(self, work: Work, settings: Settings) -> Path:
        recipe = settings.used(Part.base)["recipe"]
        return work.folder / "tuned" / key_of([self._weights, recipe])

    def _tune_enlarging(
        self, work: Work, settings: Settings, base: Path, subject: SubjectConfig
    ) -> tuple[Drawn, float, float]:
        """Tune the stages after a tuned base, and let them enlarge what that base draws.

        Returns:
            The pictures, seconds of the training steps and of enlarging.
        """
        folder = personalise(
            DreamBoothConfig(
                cascade=str(base),
                instance_data_dir=work.folder / "photos",
                output_dir=work.folder / "tuned" / self.key(work, settings),
                class_noun=work.class_noun,
                identifier=subject.identifier,
                class_data_dir=work.class_images,
                stages=self.stages[1:],
                sr_prompt=settings.sr_prompt,
                validation_images=0,
                recipe=settings.recipe,
            )
        )
        tuned = Cascade.load(folder, self._device)
        low = kept(
            self._drawn_file(work, settings, base.name),
            self.stages[:1],
            lambda: draw_base(tuned, subject, settings.sampler, self._console),
        )
        begin = time.perf_counter()
        drawn = enlarge(tuned, subject, low, self.stages[1:])
        drawing = time.perf_counter() - begin
        tuning = _step_seconds(folder, self.stages[1:])
        shutil.rmtree(folder)
        return drawn, tuning, drawing

    def _draw_untouched(self, work: Work, settings: Settings, subject: SubjectConfig) -> Drawn:
        def draw() -> Drawn:
            low = draw_base(self._untouched, subject, settings.sampler, self._console)
            return enlarge(self._untouched, subject, low, self.stages[1:])

        return kept(self._drawn_file(work, settings, "untouched"), self.stages, draw)

    def _drawn_file(self, work: Work, settings: Settings, drawn_by: str) -> Path:
        sampler = settings.sampler.model_dump(mode="json")
        key = key_of([self._weights, self.stages, sampler, drawn_by])
        return work.folder / "drawn" / f"{key}.safetensors"

    def _score(
        self, work: Work, before: Drawn, drawn: Drawn, tuning: float | None, drawing: float
    ) -> Finding:
        photos, stage = work.photos.images, self.stages[-1]
        floor, scores = (
            score_subject(pictures, before, photos, self._extractor, stage)
            for pictures in (before, drawn)
        )
        seen_before, seen = (
            share_seen(pictures.of_class.tensor, work.class_noun, self._extractor)
            for pictures in (before, drawn)
        )
        top = ceiling(photos, self._extractor, drawn.instance.tensor.shape[-1])
        return Finding(
            of_the_way=of_the_way(scores.similarity, floor.similarity, top),
            floor=floor.similarity,
            ceiling=top,
            scores=scores,
            seen=seen,
            seen_before=seen_before,
            tuning_seconds=tuning,
            drawing_seconds=drawing,
        )


def _step_seconds(folder: Path, stages: Sequence[str]) -> float:
    """Seconds that a personalisation spent on its training steps."""
    return sum(training_seconds(read_log(folder / "runs" / name / "log.jsonl")) for name in stages)
