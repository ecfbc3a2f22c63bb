"""The one harness: every case that is wanted, one after another, into one record.

The record is written after every case, so that a run that was cut short goes on from there.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cascade.environment import usable_device
from cascade.errors import UserError
from cascade.progress import say
from cascade.results import Result
from cascade_bench.device import facts, peaks
from cascade_bench.measuring import bench_case, lost
from cascade_bench.problem import Case
from cascade_bench.records import CaseResult, Peaks
from cascade_bench.settings import BenchConfig


def bench(
    kind: str,
    cases: Sequence[Case],
    stem: Path,
    config: BenchConfig,
    *,
    packages: Sequence[str] = (),
    trial: str = "",
) -> tuple[Result, bool]:
    """Measure cases and write them to a record, beside those that it holds already.

    Returns:
        The record, and whether everything wanted is in it.
    """
    device = torch.device(usable_device(config.device))
    trial = "a dry run" if config.dry_run else trial
    start, longest = time.monotonic(), 0.0

    def record(found: Sequence[CaseResult], ceilings: Peaks | None) -> Result:
        figures: dict[str, Any] = {"cases": [case.model_dump(mode="json") for case in found]}
        figures["peaks"] = None if ceilings is None else ceilings.model_dump()
        return Result.of(kind, config, figures, packages=packages, also=facts(device), trial=trial)

    empty = record([], None)
    held = _held(empty, stem)
    found = [] if held is None else cases_of(held)
    ceilings = peaks_of(held) if held else peaks(device) if device.type == "cuda" else None
    done = {(case.group, case.case) for case in found}
    result = held or empty
    for case in cases:
        begun = time.monotonic()
        if (case.group, case.name) in done:
            continue
        if config.budget is not None and begun - start + longest > 60 * config.budget:
            return result, False
        found = [*found, bench_case(case, config)]
        result = record(found, ceilings)
        result.write(stem)
        longest = max(longest, time.monotonic() - begun)
        say(f"{case.group}, {case.name}: {_outcome(found[-1])}")
        if lost(device):
            raise UserError(
                f"{case.group}, {case.name} lost the device, as {result.path(stem)} tells; start "
                "again to go on with the other cases."
            )
    return result, True


def cases_of(result: Result) -> list[CaseResult]:
    """Return what a record holds of cases."""
    held = result.figures["cases"]
    assert isinstance(held, list)  # as `bench` writes it
    return [CaseResult.model_validate_json(json.dumps(case)) for case in held]


def peaks_of(result: Result) -> Peaks | None:
    """Return the ceilings that a record holds; a CPU has none."""
    held = result.figures["peaks"]
    return None if held is None else Peaks.model_validate(held)


def _held(empty: Result, stem: Path) -> Result | None:
    """Read the record that is there already."""
    path = empty.path(stem)
    if not path.is_file():
        return None
    held = Result.load(path)
    passing = ("date", "load average")
    same = all(
        held.environment.get(key) == value
        for key, value in empty.environment.items()
        if key not in passing
    )
    # With a larger budget the same run goes on.
    settings = [{**one.settings, "budget": None} for one in (held, empty)]
    if not same or held.kind != empty.kind or settings[0] != settings[1]:
        raise UserError(
            f"{path} was measured with other code, versions or settings; remove it or give another "
            "--output."
        )
    return held


def _outcome(found: CaseResult) -> str:
    parts = []
    for mode in found.drift:
        time, best, gain = found.time(mode, found.own(mode)), found.best(mode), found.gain(mode)
        told = "no time" if time is None else f"{time / 1000:.3g} ms"
        eager = found.gain(mode, eager=True)
        told += "" if gain is None else f", {gain:.2f}x {best}"
        told += "" if eager is None else f", eager {eager:.2f}x {found.best(mode, eager=True)}"
        steady = "" if found.valid(mode) else " (the device drifted)"
        parts.append(f"{mode} {told}{steady}")
    return "; ".join(parts)
