"""What `cascade bench kernels` does: measure and report, or tune."""

from collections.abc import Sequence
from pathlib import Path

import torch

from bench.plot import figure_of_matplotlib
from bench.report import README, measured, write_readme, write_report
from bench.run import OPERATIONS, QUICK, RESULTS, Job, Settings, bench, jobs
from bench.tune import present, trial, tune, with_routes, write_table
from cascade.environment import environment
from cascade.errors import UserError
from cascade_kernels.dispatch import architecture
from cascade_kernels.launch_table import user_table

SCRATCH = Path("runs/bench")
"""Where a quick run's results go: they are a look and no measurement."""


def bench_kernels(
    names: Sequence[str], wanted: Sequence[str], output: Path | None, *, quick: bool, tuning: bool
) -> str:
    """Measure the kernels, or choose their launch configurations, on this machine's GPU.

    Args:
        names: operations; none is all.
        wanted: parts of the cases' names; none is all.
        output: folder for the results, by default the checkout's; or for the tuned table, by
            default the user's own, which then holds for every run on this machine.
        quick: fewer shapes and rounds.
        tuning: write a launch table instead of results.

    Returns:
        A sentence that says what was written.

    Raises:
        UserError: there is no CUDA device, or a choice is unknown.
    """
    todo = jobs(names, wanted, quick=quick)  # a wrong name is told on every machine
    if not torch.cuda.is_available():
        known = ", ".join(measured())
        told = f", or see what was measured on {known} in {README}" if known else ""
        raise UserError(
            "The benchmark needs a CUDA device and finds none; run it on a machine with a "
            f"GPU{told}."
        )
    settings = QUICK if quick else Settings()
    if tuning:
        return f"The launch table is {_tune(todo, output, settings)}."
    figure_of_matplotlib()
    path = results_path(output or (SCRATCH if quick else RESULTS))
    bench(todo, path, settings)
    write_report(path)
    if output is None and not quick:
        write_readme()
    return f"The results are {path}; remove it to measure again."


def results_path(folder: Path) -> Path:
    """Return where a measurement of this commit on this GPU today is kept."""
    told = environment()
    gpu = told["machine"].lower().replace(" ", "-")
    day, commit = told["date"].partition(" ")[0], told["commit"].partition(" ")[0]
    return folder / gpu / f"{day}-{commit}.json"


def _tune(todo: Sequence[Job], output: Path | None, settings: Settings) -> Path:
    """Choose the configurations, measure with them, and route by what was measured."""
    name = architecture(settings.device)
    path = user_table(name) if output is None else output / f"{name}.json"
    tune(todo, path, settings)
    table = present(path, settings.device)
    timed = path.with_name(f"{name}-results.json")
    timed.unlink(missing_ok=True)
    with trial(table):
        results, _ = bench(todo, timed, settings)
    write_table(with_routes(table, OPERATIONS, results), path)
    return path
