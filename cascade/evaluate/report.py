"""A report that one opens by double click: pictures, curves and tables in a single HTML file.

Nothing in it points outside: pictures are PNG data, curves are inline SVG that follows the page's
light or dark colours.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.tables import Table, is_number, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib has no notion of CSS: everything drawn in this colour becomes `currentColor`.
_INK = "#123456"
_COLOURS = ("#3f78c9", "#d9772b", "#2f9a6b", "#b0519f", "#8a7a2e", "#c2484d")
_MOST_POINTS = 500


@dataclass(frozen=True)
class Figure:
    """A picture, or the markup of a drawing, with what it shows."""

    content: Image.Image | str  # SVG of this project's own: it enters the page unescaped
    caption: str
    alt: str = ""  # what a reader who cannot see it is told; the caption where empty

    @property
    def png(self) -> str | None:
        """The picture as the base64 text of a PNG; None for a drawing."""
        if isinstance(self.content, str):
            return None
        buffer = io.BytesIO()
        self.content.save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode("ascii")

    def svg(self, prefix: str) -> str:
        """Return the drawing, its ids made unique by a prefix; empty for a picture."""
        if not isinstance(self.content, str):
            return ""
        return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", self.content)


@dataclass(frozen=True)
class Section:
    """A chapter of the report; its text's paragraphs are parted by empty lines."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()

    @property
    def paragraphs(self) -> list[str]:
        """The text's paragraphs."""
        return [part.strip() for part in self.text.split("\n\n") if part.strip()]


@dataclass(frozen=True)
class Report:
    """The whole page: what was found, and what a figure is worth nothing without."""

    title: str
    summary: str
    command: str
    environment: Mapping[str, str]
    sections: Sequence[Section]

    def render(self) -> str:
        """Return the page as self-contained HTML."""
        templates = Environment(
            loader=PackageLoader("cascade", "evaluate"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters["value"] = shown
        templates.tests["numeric"] = is_number
        return templates.get_template("report.html.jinja").render(report=self)

    def write(self, path: Path) -> None:
        """Write the page; a reader sees either all of it or the file before."""
        write_bytes(self.render().encode("utf-8"), path)


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    keys: Sequence[str] = ("loss",),
    smoothing: float = 0.02,
) -> str:
    """Draw the losses of one or more runs against the images seen.

    A diffusion loss at one step mostly tells which noise levels were drawn: the smoothed line
    stands over the raw points, which are faint.

    Args:
        runs: for each run's name its log, one mapping per line with `images` and some of `keys`;
            lines without a key (a validation, say) are passed over for it.
        keys: what to draw, one panel each.
        smoothing: the exponential average's horizon as a fraction of the run's points.

    Returns:
        the markup of an SVG drawing whose axes have the colour of the text around it.

    Raises:
        ValueError: no run has a point for one of the keys.
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError:
        raise UserError(
            'Loss curves need matplotlib; run: pip install "dreamcascade[evaluate]"'
        ) from None
    # A fixed salt and no date: the same log gives the same bytes.
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "cascade", "font.size": 10}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), _INK)
    style |= dict.fromkeys(("xtick.color", "ytick.color"), _INK)
    with mpl.rc_context(style):
        canvas = Canvas(figsize=(8, 2.9 * len(keys)), layout="constrained")
        panels = canvas.subplots(len(keys), 1, squeeze=False, sharex=True)[:, 0]
        for panel, key in zip(panels, keys, strict=True):
            _draw(panel, {name: _points(log, key) for name, log in runs.items()}, key, smoothing)
        panels[-1].set_xlabel("images seen")
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    markup = buffer.getvalue()
    return markup[markup.index("<svg") :].replace(_INK, "currentColor")


def _draw(
    panel: "Axes", runs: Mapping[str, list[tuple[float, float]]], key: str, smoothing: float
) -> None:
    """Draw one loss of every run that has it: a smoothed line over faint points."""
    if not any(runs.values()):
        raise ValueError(f"no run has a value for '{key}'")
    lows, highs = [], []
    # A run keeps its colour in every panel, also where an earlier run has nothing to show.
    for number, (name, points) in enumerate(runs.items()):
        if not points:
            continue
        images, values = zip(*points, strict=True)
        smooth = _smoothed(values, max(1.0, smoothing * len(values)))
        colour = _COLOURS[number % len(_COLOURS)]
        # A mark of SVG is about 100 bytes: a long run must not make a page of megabytes.
        shown = slice(None, None, -(-len(values) // _MOST_POINTS))
        panel.plot(images[shown], values[shown], ".", color=colour, alpha=0.18, markersize=3)
        panel.plot(images[shown], smooth[shown], color=colour, linewidth=1.8, label=name)
        ordered, outliers = sorted(values), len(values) // 50
        lows.append(min(*smooth, ordered[outliers]))
        highs.append(max(*smooth[len(smooth) // 10 :], ordered[-1 - outliers]))
    # Outliers of the raw points (2 % on each side) must not flatten the curve.
    margin = 0.05 * (max(highs) - min(lows)) or 1.0
    panel.set_ylim(min(lows) - margin, max(highs) + margin)
    panel.set_ylabel(key)
    panel.grid(color=_INK, alpha=0.15, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)


def _points(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(line["images"], line[key]) for line in log if key in line]


def _smoothed(values: Sequence[float], horizon: float) -> list[float]:
    """Exponential average over about `horizon` values, without bias towards a start at zero."""
    keep = 1 - 1 / horizon
    total = weight = 0.0
    averages = []
    for value in values:
        total = keep * total + value
        weight = keep * weight + 1
        averages.append(total / weight)
    return averages
