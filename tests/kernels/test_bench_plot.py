"""The drawing of a benchmark's ratios tells what its record holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from cascade.results import Result
from cascade_bench.kernels import plot
from cascade_bench.records import CaseResult, Row, Timing, Work
from cascade_bench.settings import BenchConfig

pytest.importorskip("matplotlib")


@pytest.fixture
def measured(repository: Path) -> Result:
    """The record of an H200, of an older format, with an eager clock made up."""
    file = repository / "tools" / "results" / "2026-11-28-kernels-h200.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    cases = [_case(case).model_dump(mode="json") for case in held["cases"]]
    result = Result.of("bench kernels", BenchConfig(), {"cases": cases, "peaks": None})
    return result.model_copy(update={"environment": held["environment"], "trial": ""})


def _case(held: dict[str, Any]) -> CaseResult:
    rows = [row for row in held["rows"] if row["timing"] is not None]
    return CaseResult(
        group=held["op"],
        case=held["case"],
        description=held["description"],
        baseline="reference",
        ours="triton",
        work={mode: Work(bytes=w["bytes"], flops=w["flops"]) for mode, w in held["work"].items()},
        drift=held["drift"],
        state=tuple(held["state"]),
        rows=tuple(
            Row(
                mode=row["mode"],
                provider=row["provider"],
                status="ok",
                timing=Timing(
                    method="graph",
                    cold=row["timing"]["cold"],
                    warm=row["timing"]["warm"],
                    eager=[time + 80 for time in row["timing"]["cold"]],
                ),
            )
            for row in rows
        ),
    )


def test_a_drawing_has_every_shape_and_mode_and_colours_what_was_lost(measured: Result) -> None:
    markup = plot.drawing(measured)
    for told in ("NVIDIA H200", "63656eb", "mini-base64 16x16 ragged", "if-i-m 32x32"):
        assert told in markup
    for group in ("joint_attention", "group_norm_film_silu"):
        for mode in ("forward", "backward", "both"):
            assert f"{group}, {mode}" in markup
    assert "3.19" in markup
    assert "0.66" in markup
    assert plot._LOST in markup
    won = {"cases": measured.figures["cases"][1:2], "peaks": None}
    assert plot._LOST not in plot.drawing(measured.model_copy(update={"figures": won}))
    assert markup == plot.drawing(measured)  # to the last byte


def test_a_drawing_of_a_trial_says_so(measured: Result) -> None:
    assert "no result: a dry run" in plot.drawing(
        measured.model_copy(update={"trial": "a dry run"})
    )
