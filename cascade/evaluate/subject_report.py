"""Report on cascades that were tuned on a subject: figures, sheets, a page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from PIL import Image

from cascade.config.stage import SubjectConfig
from cascade.data.grid import image_grid
from cascade.data.images import to_pil
from cascade.evaluate.alone import cut_out
from cascade.evaluate.report import Figure, Report, Section, loss_curves
from cascade.evaluate.subject import BEFORE, Drawn, Photos, photos_at, subject_prompts
from cascade.evaluate.subject_metrics import METRICS
from cascade.results import Result
from cascade.tables import Table, explained

SHOWN: Final = 6  # pictures of a prompt
CELL: Final = 256  # a whole multiple of every usual stage's side: pixels are shown as they are

Log: TypeAlias = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Found:
    """Everything that was found; cascades by their label, the one before first."""

    subject: SubjectConfig
    photos: Photos
    drawn: Mapping[str, Drawn]
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]  # by stage, cascade, metric
    logs: Mapping[str, Mapping[str, Log]]  # of training, by cascade and stage

    @property
    def figures(self) -> dict[str, object]:
        """What is kept of it."""
        seconds = {
            label: {stage: training_seconds(log) for stage, log in logs.items()}
            for label, logs in self.logs.items()
        }
        return {
            "identifier": self.subject.identifier,
            "class noun": self.subject.class_noun,
            "photos": len(self.photos.images),
            "held-out photo": self.photos.held_out is not None,
            "scores": {stage: dict(found) for stage, found in self.scores.items()},
            "seconds of training": seconds,
        }

    def tables(self) -> Iterator[Table]:
        """Give a table of every stage: a cascade a line, without what nobody has a figure of."""
        for stage, found in self.scores.items():
            names = [name for name in METRICS if any(s[name] is not None for s in found.values())]
            rows = [[label, *(scores[name] for name in names)] for label, scores in found.items()]
            note = explained({name: METRICS[name] for name in names})
            yield Table([stage, *names], rows, note if stage == list(self.scores)[-1] else "")


def training_seconds(log: Log) -> float:
    """Add up the seconds that a run spent on its steps, over all its starts."""
    log = [line for line in log if "images_per_second" in line]  # a look at the stage has none
    images = pairwise([0.0, *(line["images"] for line in log)])
    return sum(
        (now - before) / line["images_per_second"]
        for (before, now), line in zip(images, log, strict=True)
    )


def sheets(found: Found) -> Iterator[tuple[str, str, Image.Image]]:
    """Give every sheet of pictures: name, caption, picture."""
    of_subject, of_class = subject_prompts(found.subject)
    yield "photos", "The photos, and what is cut out of them.", _photos(found.photos)
    seeds = "Each column is one seed, drawn by each cascade."
    instances = {label: drawn.instance.tensor for label, drawn in found.drawn.items()}
    classes = {label: drawn.of_class.tensor for label, drawn in found.drawn.items()}
    for name, prompt, shown in (("subject", of_subject, instances), ("class", of_class, classes)):
        rows = [list(pictures[:SHOWN]) for pictures in shown.values()]
        yield name, f"“{prompt}”. {seeds}", image_grid(rows, row_labels=list(shown), cell=CELL)
    elsewhere = {label: drawn.elsewhere for label, drawn in found.drawn.items()}
    if prompts := list(elsewhere[BEFORE]):
        columns = [label for label, some in elsewhere.items() for _ in some[prompts[0]].tensor]
        rows = [[one for some in elsewhere.values() for one in some[p].tensor] for p in prompts]
        grid = image_grid(rows, row_labels=prompts, column_labels=columns, cell=CELL)
        yield "elsewhere", "Prompts with something that the photos do not show.", grid
    for stage in found.drawn[BEFORE].enlarged:
        yield (
            f"enlarged-{stage}",
            f"A photo made small, and enlarged by {stage}.",
            _enlarged(found, stage),
        )


def page(found: Found, result: Result, pictures: Mapping[str, tuple[str, Image.Image]]) -> Report:
    """Lay everything out as one page, with the sheets' captions and pictures by name."""
    noun, last = found.subject.class_noun, list(found.scores)[-1]
    scores = found.scores[last]
    reached = ", ".join(f"{label} {of['similarity']:.2f}" for label, of in scores.items())
    sections = [
        Section(name.capitalize(), figures=[Figure(picture, caption)])
        for name, (caption, picture) in pictures.items()
    ]
    sections.append(Section("Figures", tables=list(found.tables())))
    logs = {f"{label}, {s}": log for label, of in found.logs.items() for s, log in of.items()}
    if logs:
        sections.append(Section("Loss", figures=_curves(logs)))
    return Report(
        title=f"Cascades that know this {noun}",
        summary=f"Similarity to {len(found.photos.images)} photos, at {last}: {reached}.",
        command=result.command,
        environment=result.environment,
        sections=sections,
    )


def _photos(photos: Photos) -> Image.Image:
    rows: list[list[Image.Image]] = [to_pil(photos_at(photos.images, CELL))]
    if photos.masks:
        pairs = zip(photos.images, photos.masks, strict=True)
        rows.append([cut_out(photo, mask, CELL) for photo, mask in pairs])
    return image_grid(rows, cell=CELL)


def _enlarged(found: Found, stage: str) -> Image.Image:
    parts = {label: drawn.enlarged[stage] for label, drawn in found.drawn.items()}
    pair = parts[BEFORE].pair
    row = [pair.low[0], *(part.picture[0] for part in parts.values()), pair.high[0]]
    # Larger than elsewhere: detail is the point.
    return image_grid([row], column_labels=["small", *parts, "photo"], cell=2 * CELL)


def _curves(logs: Mapping[str, Log]) -> list[Figure]:
    figures = [Figure(loss_curves(logs), "Loss of every run.")]
    prior = {name: log for name, log in logs.items() if any("loss/prior" in line for line in log)}
    if prior:
        drawing = loss_curves(prior, ("loss/instance", "loss/prior"))
        figures.append(Figure(drawing, "The two terms of DreamBooth's loss."))
    return figures
