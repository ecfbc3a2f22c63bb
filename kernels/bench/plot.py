"""One operation's results as a picture: time, and the share of the physical floor, per shape."""

import io
from collections.abc import Sequence
from typing import Any

from bench.results import CaseResult, Results
from cascade.errors import UserError

_INCHES_PER_SHAPE = 0.28


def plot(op: str, cases: Sequence[CaseResult], results: Results) -> bytes:
    """Draw an SVG: a row of panels per mode, shapes downwards, providers as colours.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure_class = figure_of_matplotlib()
    modes = list(cases[0].drift)
    names = list(dict.fromkeys(row.provider for case in cases for row in case.rows))
    height = len(modes) * (1.2 + _INCHES_PER_SHAPE * len(cases))
    figure = figure_class(figsize=(12, height), layout="constrained")
    panels = figure.subplots(len(modes), 2, squeeze=False)
    for mode, (times, shares) in zip(modes, panels, strict=True):
        for index, name in enumerate(names):
            points = [
                (place, row.timing.median, results.peaks.floor(case.work[mode]))
                for place, case in enumerate(cases)
                if (row := case.find(mode, name)) is not None and row.timing is not None
            ]
            places = [place for place, _, _ in points]
            style = {"label": name, "color": f"C{index}", "s": 20}
            times.scatter([time for _, time, _ in points], places, **style)
            shares.scatter([100 * floor / time for _, time, floor in points], places, **style)
        times.set_xscale("log")
        times.set_xlabel("µs, cold")
        times.set_title(f"{op}, {mode}")
        shares.set_xlabel("% of the physical floor")
        times.set_yticks(range(len(cases)), [case.case for case in cases], fontsize=7)
        shares.set_yticks(range(len(cases)), [""] * len(cases))
        for panel in (times, shares):
            panel.invert_yaxis()
            panel.grid(alpha=0.3)
    panels[0][1].legend(fontsize=7)
    told = results.environment
    dry = "dry run, times mean nothing; " if results.dry_run else ""
    figure.suptitle(f"{dry}{told['machine']}, {told['date']}, {told['commit']}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()


def figure_of_matplotlib() -> Any:
    """Return matplotlib's class of figures.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "The plots need matplotlib; install it: pip install 'dreamcascade[evaluate]'."
        ) from None
    return Figure
