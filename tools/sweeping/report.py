"""What a sweep found: a record, a table a knob with the best value marked, and sheets of pictures.

The best setting is the one whose pictures come furthest towards the photos among those whose prior
drift and time stay within limits, all as means over the subjects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from PIL import Image

from cascade.data.images import read_image
from cascade.evaluate.grid import Picture, image_grid
from sweeping.drawing import SHOWN
from sweeping.knobs import Part, Setting, Table
from sweeping.ledger import Figures, Ledger
from sweeping.trial import Bench
from tables import DASH, markdown, mean, percent
from work import Work

COLUMNS = {
    "similarity": "subject similarity",
    "floor": "the untouched's",
    "ceiling": "the photos'",
    "prior_similarity": "PRES",
    "diversity": "DIV",
    "subject_diversity": "DIV of the subject",
    "drift": "prior drift",
    "seen": "class seen",
    "seen_before": "by the untouched",
    "tuning_seconds": "tuning, s",
    "drawing_seconds": "drawing, s a picture",
}


@dataclass(frozen=True)
class Limits:
    """What the best setting may cost at most.

    Attributes:
        drift: prior drift.
        seconds: of tuning a subject; in a sweep of sampling, of drawing a picture.
    """

    drift: float
    seconds: float


# Unrelated pictures of one class are about 0.47 apart (DIV of `mini`), so drift is less only where
# pictures are still themselves. The seconds are each stage's part of five minutes, class images
# taken off; a picture's are what a person waits for.
LIMITS: Mapping[Part, Limits] = {
    Part.base: Limits(0.40, 150.0),
    Part.super_resolution: Limits(0.45, 120.0),
    Part.sampling: Limits(0.40, 2.0),
}


@dataclass(frozen=True)
class Row:
    """A setting and what it did to each subject that it was tried on."""

    setting: Setting
    found: Mapping[str, Figures]

    def means(self) -> dict[str, float | None]:
        """Every figure's mean over the subjects."""
        keys = next(iter(self.found.values()), {})
        return {key: mean(figures[key] for figures in self.found.values()) for key in keys}


@dataclass(frozen=True)
class Sweep:
    """All that is reported of one part.

    Attributes:
        bench: tried the settings.
        works: the subjects by name.
        tables: a name and the settings of each.
        ledger: what was found so far.
        limits: of the best setting.
    """

    bench: Bench
    works: Mapping[str, Work]
    tables: Mapping[str, Table]
    ledger: Ledger
    limits: Limits

    def rows(self, name: str) -> list[Row]:
        """The rows of a table."""
        rows = []
        for setting in self.tables[name]:
            keys = {one: self.bench.key(w, setting.settings) for one, w in self.works.items()}
            known = self.ledger.found
            rows.append(Row(setting, {one: known[k] for one, k in keys.items() if k in known}))
        return rows

    def best(self, rows: Sequence[Row]) -> Row | None:
        """The best of the settings that were tried on every subject; None if none qualifies."""
        complete = [row for row in rows if len(row.found) == len(self.works)]
        within = [row for row in complete if self._within(row.means())]
        return max(within, key=lambda row: row.means()["of_the_way"] or 0.0, default=None)

    def rule(self) -> str:
        """How the best setting is chosen, as a sentence."""
        action = "drawing a picture" if self.bench.part is Part.sampling else "tuning"
        return (
            "Best is what comes furthest of the way among the settings whose prior drift is at "
            f"most {self.limits.drift:g} and whose {action} takes at most "
            f"{self.limits.seconds:g} s, as means over the subjects."
        )

    def _within(self, means: Figures) -> bool:
        time = "drawing_seconds" if self.bench.part is Part.sampling else "tuning_seconds"
        way, drift, seconds = means["of_the_way"], means["drift"], means[time]
        if way is None or drift is None or seconds is None:
            return False
        return drift <= self.limits.drift and seconds <= self.limits.seconds


def record(sweep: Sweep) -> dict[str, object]:
    """Everything, ready for JSON."""
    return {
        "part": sweep.bench.part,
        "stage": sweep.bench.stages[-1],
        "rule": sweep.rule(),
        "limits": asdict(sweep.limits),
        "subjects": {
            name: {"class_noun": work.class_noun, "photos": len(work.photos.images)}
            for name, work in sweep.works.items()
        },
        "tables": {name: _entries(sweep, sweep.rows(name)) for name in sweep.tables},
    }


def _entries(sweep: Sweep, rows: Sequence[Row]) -> list[dict[str, object]]:
    best = sweep.best(rows)
    return [
        {
            "label": row.setting.label,
            "best": row is best,
            "settings": row.setting.settings.used(sweep.bench.part),
            "means": row.means(),
            "subjects": row.found,
        }
        for row in rows
    ]


def tables(sweep: Sweep) -> str:
    """Every table as Markdown, with the means over the subjects."""
    names = ", ".join(sweep.works)
    parts = [f"# {sweep.bench.part}: pictures of {sweep.bench.stages[-1]}; {names}", sweep.rule()]
    for name in sweep.tables:
        rows = sweep.rows(name)
        best = sweep.best(rows)
        lines = [_line(row, row is best, len(sweep.works)) for row in rows]
        parts += [f"## {name}", markdown([name, "of the way", *COLUMNS.values()], lines)]
    return "\n\n".join(parts) + "\n"


def _line(row: Row, best: bool, subjects: int) -> list[str]:
    means = row.means()
    label = row.setting.label
    if len(row.found) < subjects:
        label += f" ({len(row.found)} of {subjects} subjects)"
    cells = [_text(means.get(key), 1 if key.endswith("seconds") else 3) for key in COLUMNS]
    return [f"**{label}: best**" if best else label, percent(means.get("of_the_way")), *cells]


def _text(value: float | None, decimals: int) -> str:
    return DASH if value is None else f"{value:.{decimals}f}"


def sheet(sweep: Sweep, name: str) -> Image.Image:
    """A row of pictures a setting, below the photos and what the untouched cascade draws.

    Each subject has the same columns: its own prompt's pictures, then its class's.
    """
    works = sweep.works.values()
    photos: list[Picture] = []
    for work in works:
        some: list[Picture] = [*work.photos.images[: SHOWN[0]]]
        photos += some + [None] * (sum(SHOWN) - len(some))
    labels, rows = ["photos"], [photos]
    settings = [("untouched", None), *((row.label, row.settings) for row in sweep.tables[name])]
    for label, each in settings:
        paths = [path for work in works for path in sweep.bench.shown(work, each)]
        if any(path.is_file() for path in paths):
            labels.append(label)
            rows.append([read_image(path) if path.is_file() else None for path in paths])
    columns = []
    for subject, work in sweep.works.items():
        columns += [subject] * SHOWN[0] + [f"a {work.class_noun}"] * SHOWN[1]
    return image_grid(rows, row_labels=labels, column_labels=columns, cell=128)
