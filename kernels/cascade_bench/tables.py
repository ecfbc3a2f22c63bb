"""The tables of a benchmark: a line per case, a column per provider."""

import statistics
from collections.abc import Sequence

from cascade.results import Result
from cascade.tables import DASH, Table
from cascade_bench.harness import cases_of, peaks_of
from cascade_bench.records import CaseResult, Mode, Peaks, Row


def tables(result: Result) -> list[Table]:
    """Return a table of every group and mode."""
    cases, ceilings = cases_of(result), peaks_of(result)
    found: list[Table] = []
    for group in dict.fromkeys(case.group for case in cases):
        own = [case for case in cases if case.group == group]
        for mode in own[0].drift:
            found.append(_table(group, mode, own, ceilings))
            if any(case.images for case in own):
                found.append(_rates(group, mode, own, ceilings))
            if any(row.timing and row.timing.processor for case in own for row in case.rows):
                found.append(_processors(group, mode, own))
    return found


def _table(group: str, mode: Mode, cases: Sequence[CaseResult], ceilings: Peaks | None) -> Table:
    names = _providers(cases)
    counted = ceilings is not None and any(mode in case.work for case in cases)
    weighed = any(row.peak is not None for case in cases for row in case.rows)
    eager = _timed_eagerly(cases, mode)
    head = [f"{group}, {mode}, ms", "sizes", *names, "best alternative / ours"]
    head += ["eager: ours, best alternative, ms", "eager: best alternative / ours"] if eager else []
    head += ["of the floor"] if counted else []
    head += [f"memory, MiB: {', '.join(names)}"] if weighed else []
    rows: list[list[str]] = []
    for case in cases:
        row = [case.case, case.description]
        row += [_cell(case, mode, name) for name in names] + [_gain(case, mode)]
        row += [_eager(case, mode), _gain(case, mode, eager=True)] if eager else []
        row += [_share(case, mode, ceilings)] if counted else []
        row += [", ".join(_memory(case.find(mode, name)) for name in names)] if weighed else []
        rows.append(row)
    return Table(head, rows, _note(cases, mode))


def _timed_eagerly(cases: Sequence[CaseResult], mode: Mode) -> bool:
    return any(
        case.samples(mode, name, eager=True) for case in cases for name in _providers([case])
    )


def _providers(cases: Sequence[CaseResult]) -> list[str]:
    return list(dict.fromkeys(row.provider for case in cases for row in case.rows))


def _rates(group: str, mode: Mode, cases: Sequence[CaseResult], ceilings: Peaks | None) -> Table:
    names = _providers(cases)
    rows = [
        [case.case, case.description]
        + [_rate(case, case.find(mode, name), ceilings) for name in names]
        for case in cases
    ]
    head = [f"{group}, {mode}, images/s", "sizes", *names]
    if not any(row.flops for case in cases for row in case.rows):
        return Table(head, rows)
    note = (
        "In brackets the operations that the network needs for an image, and what of the device's "
        "bf16 peak, by its data sheet, is used for them (model FLOP/s utilization)."
    )
    return Table(head, rows, note)


def _processors(group: str, mode: Mode, cases: Sequence[CaseResult]) -> Table:
    names = _providers(cases)
    rows = [
        [case.case, case.description, *(_processor(case, mode, name) for name in names)]
        for case in cases
    ]
    head = [f"{group}, {mode}, processor's ms an image", "sizes", *names]
    note = (
        "What all processes take of the processors, which does not depend on who else runs; in "
        f"brackets how little beside {cases[0].baseline}, as above."
    )
    return Table(head, rows, note)


def _processor(case: CaseResult, mode: Mode, name: str) -> str:
    row = case.find(mode, name)
    taken = row.timing.median_processor if row and row.timing else None
    ratio = case.processor_ratio(mode, name, case.baseline)
    if taken is None:
        return ""
    told = f"{taken / case.images / 1000:.4g}"
    if ratio is None or name == case.baseline:
        return told
    return f"{told} ({ratio.median:.2f}, {ratio.low:.2f} to {ratio.high:.2f})"


def _rate(case: CaseResult, row: Row | None, ceilings: Peaks | None) -> str:
    if row is None or row.timing is None:
        return ""
    seconds = row.timing.median / 1e6
    if row.flops is None:
        return f"{case.images / seconds:.4g}"
    told = f"{row.flops / case.images / 1e9:.4g} GFLOP"
    if ceilings is not None and ceilings.nominal_rate is not None:
        told += f", {row.flops / seconds / ceilings.nominal_rate:.1%}"
    return f"{case.images / seconds:.4g} ({told})"


def _note(cases: Sequence[CaseResult], mode: Mode) -> str:
    eager = ""
    if _timed_eagerly(cases, mode):
        eager = (
            " Eager is the wall time of calls that Python launches one by one, its ratio that of "
            f"the alternative which is fastest so: {_mean(cases, mode, eager=True)}."
        )
    return (
        f"Medians; in brackets how often as fast as {cases[0].baseline}: the median of ratios that "
        "are taken pair by pair, and their 20th to 80th percentile. "
        f"Of {_mean(cases, mode)}.{eager}"
    )


def _mean(cases: Sequence[CaseResult], mode: Mode, eager: bool = False) -> str:
    gains = [gain for case in cases if (gain := case.gain(mode, eager)) is not None]
    told = f"geometric mean {statistics.geometric_mean(gains):.2f}" if gains else "no ratio"
    lost = sum(gain < 1 for gain in gains)
    return f"{len(cases)} cases {len(gains)} count: {told}, {lost} lost"


def _cell(case: CaseResult, mode: Mode, provider: str) -> str:
    row = case.find(mode, provider)
    if row is None:
        return ""
    if row.timing is None:
        return f"{row.status}: {row.reason}"
    ratio = case.ratio(mode, provider, case.baseline)
    told = f"{row.timing.median / 1000:.4g}"
    if ratio is None or provider == case.baseline:
        return told
    return f"{told} ({ratio.median:.2f}, {ratio.low:.2f} to {ratio.high:.2f})"


def _eager(case: CaseResult, mode: Mode) -> str:
    best = case.best(mode, eager=True)
    ours = case.time(mode, case.own(mode, eager=True), eager=True)
    theirs = None if best is None else case.time(mode, best, eager=True)
    told = [DASH if time is None else f"{time / 1000:.4g}" for time in (ours, theirs)]
    return f"{told[0]}, {told[1]} {best or ''}".rstrip()


def _gain(case: CaseResult, mode: Mode, eager: bool = False) -> str:
    gain = case.gain(mode, eager)
    if gain is None:
        return "" if case.valid(mode) else f"invalid: drift of {case.drift[mode]:.1%}"
    return f"{gain:.2f}" if gain >= 1 else f"**{gain:.2f}**"


def _share(case: CaseResult, mode: Mode, ceilings: Peaks | None) -> str:
    time = case.time(mode, case.own(mode))
    if time is None or ceilings is None or mode not in case.work:
        return ""
    return f"{ceilings.floor(case.work[mode]) / time:.0%}"


def _memory(row: Row | None) -> str:
    return "?" if row is None or row.peak is None else f"{row.peak / 2**20:.0f}"
