"""The ratios of a benchmark of kernels as a drawing: won and lost at a glance."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from cascade.errors import UserError
from cascade.results import Result
from cascade_bench.harness import cases_of
from cascade_bench.records import CaseResult, Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WON, _LOST, _FAINT = "#2a7f9e", "#c8442f", "#777777"
_LINE: Final = 0.2  # inches that a shape takes


def drawing(result: Result) -> str:
    """Draw, per operation and mode, the best alternative's time over ours for every shape.

    A bar is the ratio in a CUDA graph, a diamond that of eager calls.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError(
            'The drawing of the ratios needs matplotlib; run: pip install "dreamcascade[evaluate]"'
        ) from None
    cases = cases_of(result)
    groups = {name: [c for c in cases if c.group == name] for name in (c.group for c in cases)}
    modes: list[Mode] = list(dict.fromkeys(mode for case in cases for mode in case.drift))
    heights = [_LINE * len(own) + 0.7 for own in groups.values()]
    # A fixed salt and no date: the same record gives the same bytes.
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "cascade", "font.size": 8}
    with mpl.rc_context(style):
        canvas = Figure(figsize=(3 + 3.2 * len(modes), sum(heights) + 1), layout="constrained")
        panels = canvas.subplots(
            len(groups), len(modes), squeeze=False, height_ratios=heights, sharex=True
        )
        for line, (group, own) in zip(panels, groups.items(), strict=True):
            for panel, mode in zip(line, modes, strict=True):
                _draw(panel, mode, own)
                panel.set_title(f"{group}, {mode}", fontsize=9)
                panel.set_visible(mode in own[0].drift)
            line[0].set_yticks(range(len(own)), [case.case for case in own])
        canvas.suptitle(_title(result), fontsize=10)
        canvas.supxlabel(
            "the best alternative's time over ours: above 1 ours is faster, below in red it lost; "
            "bars in a CUDA graph, diamonds eager",
            fontsize=8,
        )
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw(panel: "Axes", mode: Mode, cases: Sequence[CaseResult]) -> None:
    panel.set_xscale("log", base=2)
    panel.axvline(1, color="black", linewidth=1)
    for place, case in enumerate(cases):
        gain, eager = case.gain(mode), case.gain(mode, eager=True)
        if gain is not None:
            panel.barh(place, gain - 1, left=1, height=0.65, color=_colour(gain))
            won = gain >= 1
            panel.annotate(
                f"{gain:.2f}",
                ((max if won else min)(gain, eager or gain), place),
                xytext=(4 if won else -4, 0),
                textcoords="offset points",
                ha="left" if won else "right",
                va="center",
                fontsize=6,
            )
        elif mode in case.drift:
            panel.annotate("no ratio", (1, place), va="center", fontsize=6, color=_FAINT)
        if eager is not None:
            panel.plot(
                eager, place, "D", color="white", markeredgecolor=_colour(eager), markersize=4
            )
    panel.set_ylim(len(cases) - 0.4, -0.6)
    panel.set_yticks([])
    panel.margins(x=0.15)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.tick_params(axis="x", labelbottom=True)
    panel.grid(axis="x", alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _colour(gain: float) -> str:
    return _WON if gain >= 1 else _LOST


def _title(result: Result) -> str:
    where = result.environment
    told = ", ".join(where[key] for key in ("machine", "date", "commit") if key in where)
    return f"A trial and no result: {result.trial}\n{told}" if result.trial else told
