"""The parity report as files: JSON to read by machine, a page and images to look at.

Shapes: `B` images, `C H W` pixels in [-1, 1].
"""

import json
import math
from pathlib import Path
from typing import Final

from PIL import Image

from cascade.data.grid import image_grid
from cascade.data.images import write_png
from cascade.evaluate.report import Figure, Report, Section
from cascade.files import write_bytes
from cascade.tables import Table
from cascade_export.parity.compare import TrajectoryResult
from cascade_export.parity.findings import Findings, Pair, ParityReport

JSON: Final = "parity.json"
PAGE: Final = "parity.html"
_MOST_ROWS = 8
_MOST_AMPLIFICATION = 1024
_SHOWN_STEPS = 6


def write_report(report: ParityReport, folder: Path, command: str) -> Path:
    """Write `parity.json`, `parity.html` and a sheet of images per stage.

    Returns:
        The page's path.
    """
    findings = report.findings
    # By way of its own text, in which NaN is a string: `model_dump` would hand on the number.
    values = json.loads(findings.model_dump_json()) | {"passed": report.passed}
    write_bytes((json.dumps(values, indent=2) + "\n").encode(), folder / JSON)
    figures = []
    for stage, pair in report.pictures.items():
        picture, caption = sheet(pair, findings.prompts)
        write_png(picture, folder / f"{stage}.png")
        figures.append(Figure(picture, f"Stage {stage}. {caption}"))
    Report(
        title="The engines beside the networks they came from",
        summary=_summary(report),
        command=command,
        environment=findings.environment,
        sections=[
            Section("Pictures", _PICTURES, figures, [_pictures(findings)]),
            Section("Along the trajectories", _STEPS, tables=_steps(findings)),
            Section("Call by call", _TENSORS, tables=[_tensors(findings)]),
            *_divergences(findings),
        ],
    ).write(folder / PAGE)
    return folder / PAGE


def sheet(pair: Pair, prompts: tuple[str, ...]) -> tuple[Image.Image, str]:
    """Lay eager's image, the engine's and their difference side by side, a row per prompt.

    Returns:
        The sheet, and a sentence that says by how much the difference is amplified.
    """
    difference = pair.engine - pair.eager
    largest = float(difference.abs().nan_to_num(nan=math.inf).max())
    if largest == 0:
        amplification, caption = 1, "The pictures are equal to the last bit."
    else:
        # A power of two which leaves the largest difference inside the image's range.
        exponent = math.floor(-math.log2(largest)) if math.isfinite(largest) else 0
        amplification = 2 ** min(max(exponent, 0), int(math.log2(_MOST_AMPLIFICATION)))
        caption = f"The difference is amplified {amplification} times; grey is none."
    rows = [
        [
            eager,
            engine.nan_to_num(nan=-1.0),
            (amplification * shown).nan_to_num(nan=1.0).clamp(-1, 1),
        ]
        for eager, engine, shown in zip(pair.eager, pair.engine, difference, strict=True)
    ]
    picture = image_grid(
        rows[:_MOST_ROWS],
        row_labels=[prompt or "(no text)" for prompt in prompts[:_MOST_ROWS]],
        column_labels=["eager", "engine", f"difference x {amplification}"],
        cell=max(128, pair.eager.shape[-1]),
    )
    left_out = len(rows) - _MOST_ROWS
    return picture, caption + (f" {left_out} more rows are left out." if left_out > 0 else "")


_PICTURES = """Eager is the network in fp32. The limit is three times what eager departs by in the
engine's own precision (for fp32: what eager in fp64 departs by), or a floor below
which nothing can be seen. What eager departs by is measured where the engine is above the
floor, and left out elsewhere: it decides nothing there. Deviations are given before and
after rounding to 8 bits."""
_STEPS = """By how many grey levels the prediction of the clean picture departs after a step, as
root mean square; a stage begins with the pictures that the same engine's stage before it drew."""
_TENSORS = """One call of each network on the same inputs: the root mean square of the difference
over that of eager's answer."""


def _summary(report: ParityReport) -> str:
    findings = report.findings
    verdict = "match" if report.passed else "do not match"
    ran = (
        ""
        if findings.executed
        else " They were built, not executed: this machine cannot run them, and another runtime "
        "has run the same graphs in their place."
    )
    failed = "" if report.passed else " " + "; ".join(report.failures()) + "."
    return (
        f"The {findings.engine} engines in {findings.precision} {verdict} eager within the "
        f"limits, over {len(findings.prompts)} prompts and all stages.{ran}{failed}"
    )


def _pictures(findings: Findings) -> Table:
    rows: list[list[str | float | int | None]] = []
    for one in findings.trajectories:
        rows_of = ((findings.engine, one.engine), ("eager", one.eager), ("limit", one.limit))
        for who, deviation in rows_of:
            if deviation is None:
                continue
            psnr = deviation.psnr if math.isfinite(deviation.psnr) else None
            rows.append(
                [
                    f"{one.stage}: {who}",
                    deviation.rms,
                    psnr,
                    100 * deviation.differing,
                    deviation.greatest,
                ]
            )
    head = ("stage", "RMS, grey levels", "PSNR, dB", "8-bit values that differ, %", "by up to")
    return Table(head, rows, "A dash for the PSNR stands for equal pictures.")


def _steps(findings: Findings) -> list[Table]:
    return [_trajectory(one, findings.engine) for one in findings.trajectories]


def _trajectory(one: TrajectoryResult, engine: str) -> Table:
    last = len(one.steps) - 1
    shown = sorted({round(last * part / (_SHOWN_STEPS - 1)) for part in range(_SHOWN_STEPS)})
    eager = one.eager_steps or [None] * len(one.steps)
    rows: list[list[str | float | int | None]] = [
        [step + 1, one.steps[step], eager[step]] for step in shown
    ]
    return Table((f"step of {one.stage}", engine, "eager in its precision"), rows)


def _tensors(findings: Findings) -> Table:
    rows: list[list[str | float | int | None]] = [
        [
            f"{one.stage}: {one.case}",
            one.engine.relative,
            None if one.eager is None else one.eager.relative,
            one.limit,
            "yes" if one.passed else "no",
        ]
        for one in findings.tensors
    ]
    return Table(("inputs", "engine", "eager in its precision", "limit", "passed"), rows)


def _divergences(findings: Findings) -> list[Section]:
    if not findings.departures:
        return []
    text = "\n\n".join(one.sentence for one in findings.departures)
    return [Section("Where it begins", text)]
