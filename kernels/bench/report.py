"""Results as a CSV, plots and the tables of `kernels/README.md`.

    python -m bench.report

writes them anew from the results files; no figure of theirs is typed by hand.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.goals import Goal, geometric_mean, goals, ratio
from bench.plot import plot
from bench.results import OURS, CaseResult, Mode, Results, read_results
from bench.run import OPERATIONS, RESULTS
from cascade.errors import UserError
from cascade.files import write_bytes

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NOT_MEASURED = "not yet measured"
_COLUMNS = (
    "op",
    "case",
    "description",
    "dtype",
    "mode",
    "provider",
    "status",
    "reason",
    "method",
    "cold_p20_us",
    "cold_p50_us",
    "cold_p80_us",
    "warm_p50_us",
    "floor_us",
    "valid",
    "error_over_limit",
    "gpu",
    "date",
    "commit",
)


def write_report(path: Path) -> None:
    """Write the CSV and one plot per operation beside a results file."""
    results = read_results(path)
    write_bytes(table_of_samples(results).encode(), path.with_suffix(".csv"))
    for operation in OPERATIONS:
        cases = list(results.of(operation.name))
        if cases:
            picture = plot(operation.name, cases, results)
            write_bytes(picture, path.with_name(f"{path.stem}-{operation.name}.svg"))


def write_readme(folder: Path = RESULTS, readme: Path = README) -> None:
    """Renew the tables between the README's markers from the newest results of every GPU.

    Raises:
        UserError: the README has lost its markers.
    """
    text = readme.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme} has no '{BEGIN}' and '{END}'; put them where the tables go.")
    newest = [read_results(max(gpu.glob("*.json"))) for gpu in _gpus(folder)]
    body = "\n\n".join(section(results) for results in newest) or section(None)
    write_bytes(f"{head}{begin}\n{body}\n{end}{tail}".encode(), readme)


def section(results: Results | None) -> str:
    """Return one GPU's tables as Markdown; without results, that there are none."""
    if results is None:
        rows = [(operation.name, NOT_MEASURED) for operation in OPERATIONS]
        return _markdown(("operation", "result"), rows)
    told = results.environment
    parts = [
        f"### {told['machine']}",
        ", ".join(f"{key} {value}" for key, value in told.items() if key != "machine") + ".",
        f"Copy {results.peaks.copy_bandwidth / 1e12:.2f} TB/s, bf16 product "
        f"{results.peaks.matmul_rate / 1e12:.0f} TFLOP/s, measured in the same run.",
        _goals(goals(results)),
    ]
    for operation in OPERATIONS:
        cases = list(results.of(operation.name))
        parts += [_table(operation.name, mode, cases, results) for mode in _modes(cases)]
    return "\n\n".join(parts)


def table_of_samples(results: Results) -> str:
    """Return every provider of every case as CSV, one line each."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for case in results.cases:
        writer.writerows(_lines(case, results))
    return buffer.getvalue()


def _lines(case: CaseResult, results: Results) -> Iterator[list[object]]:
    told = results.environment
    for row in case.rows:
        times: list[object] = ["", "", "", "", ""]
        if row.timing is not None:
            low, high = row.timing.spread()
            warm = row.timing.model_copy(update={"cold": row.timing.warm}).median
            times = [row.timing.method, *(f"{t:.3f}" for t in (low, row.timing.median, high, warm))]
        yield [
            *(case.op, case.case, case.description, case.dtype),
            *(row.mode, row.provider, row.status, row.reason),
            *times,
            f"{results.peaks.floor(case.work[row.mode]):.3f}",
            case.valid(row.mode),
            "" if row.error is None else f"{row.error:.3f}",
            *(told["machine"], told["date"], told["commit"]),
        ]


def _table(op: str, mode: Mode, cases: list[CaseResult], results: Results) -> str:
    """One operation in one mode: a line per shape, losses in bold, the mean last."""
    head = ("shape", "sizes", "ms", "of the floor", "best alternative, ms", "ratio")
    rows: list[tuple[str, ...]] = []
    ratios: list[float] = []
    for case in cases:
        ours, best, factor = case.ours(mode), case.best(mode), ratio(case, mode)
        ratios += [] if factor is None else [factor]
        share = None if ours is None else results.peaks.floor(case.work[mode]) / ours
        rows.append(
            (
                case.case,
                case.description,
                _reason(case, mode) if ours is None else _milliseconds(ours, OURS, case, mode),
                "" if share is None else f"{share:.0%}",
                "none" if best is None else _alternative(best, case, mode),
                _ratio_cell(factor, case, mode),
            )
        )
    mean = geometric_mean(ratios)
    told = NOT_MEASURED if mean is None else f"{mean:.2f}x"
    lost = sum(factor < 1 for factor in ratios)
    summary = f"Geometric mean {told} over {len(ratios)} of {len(cases)} shapes; {lost} lost."
    return f"#### {op}, {mode}\n\n{_markdown(head, rows)}\n\n{summary}"


def _alternative(best: tuple[str, float], case: CaseResult, mode: Mode) -> str:
    name, time = best
    return f"{name}, {_milliseconds(time, name, case, mode)}"


def _milliseconds(time: float, provider: str, case: CaseResult, mode: Mode) -> str:
    """The time, and how it was taken where that was not by graphs: it then holds a launch too."""
    row = case.find(mode, provider)
    by_graph = row is not None and row.timing is not None and row.timing.method == "graph"
    return f"{time / 1000:.4f}" + ("" if by_graph else " (no graph)")


def _ratio_cell(factor: float | None, case: CaseResult, mode: Mode) -> str:
    if factor is None:
        return "" if case.valid(mode) else f"invalid: drift of {case.drift[mode]:.1%}"
    return f"{factor:.2f}x" if factor >= 1 else f"**{factor:.2f}x**"


def _reason(case: CaseResult, mode: Mode) -> str:
    row = case.find(mode, OURS)
    return NOT_MEASURED if row is None else f"{row.status}: {row.reason}"


def _goals(found: Iterable[Goal]) -> str:
    rows = [
        (goal.text, "" if goal.found is None else f"{goal.found:.2f}", goal.verdict)
        for goal in found
    ]
    return _markdown(("goal", "found", "verdict"), rows)


def _modes(cases: list[CaseResult]) -> list[Mode]:
    return list(cases[0].drift) if cases else []


def measured(folder: Path = RESULTS) -> list[str]:
    """Return the GPUs that results are kept of."""
    return [gpu.name for gpu in _gpus(folder)]


def _gpus(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(gpu for gpu in folder.iterdir() if gpu.is_dir() and any(gpu.glob("*.json")))


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for file in sorted(RESULTS.glob("*/*.json")):
        write_report(file)
    write_readme()
