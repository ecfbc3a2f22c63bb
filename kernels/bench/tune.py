"""Choose launch configurations, and the shapes for which a kernel is taken at all, by measuring.

The rows that are tried differ from the present one in a few values; those that spill or need more
shared memory than there is are dropped before they run, those that compute wrongly before they are
timed. What was chosen is a table of numbers, so that every later run launches alike: nothing is
tuned while a network runs.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.goals import ratio
from bench.problem import Gate, Operation, Problem, Space, refusals
from bench.results import OURS, Mode, Results
from bench.run import Job, Settings
from bench.timing import side_stream, stopwatch
from cascade.files import write_bytes
from cascade_kernels import dispatch
from cascade_kernels.launch_table import Launch, LaunchRow, Route, Table, read_table, user_table

Survives = Callable[[Table, str, LaunchRow], bool]
"""Whether a row of a kernel, on a table's architecture, compiles to something that may run."""

_READINGS = 5


@dataclass(frozen=True)
class Group:
    """The cases that share one row of a kernel's table.

    Attributes:
        kernel: its name in the tables.
        space: what to try.
        limits: of the row.
        jobs: the cases.
    """

    kernel: str
    space: Space
    limits: Mapping[str, int]
    jobs: Sequence[Job]


def tune(todo: Sequence[Job], path: Path, settings: Settings) -> None:
    """Time the configurations of every kernel on the wanted cases, and write the fastest.

    Args:
        todo: the cases.
        path: of the table; it is extended if it exists, else the present one is.
        settings: the device and the dtype.
    """
    for group in groups(todo, settings.dtype):
        row = tune_group(group, path, settings)
        print(f"{group.kernel} {dict(row.limits)}: {row.launch}", flush=True)


def tune_group(
    group: Group, path: Path, settings: Settings, survives: Survives | None = None
) -> LaunchRow:
    """Put the row with the least geometric mean of times over a group's cases into a table.

    Args:
        group: the cases and what to try on them.
        path: of the table; it is extended if it exists, else the present one is.
        settings: the device and the dtype.
        survives: what to leave out before it runs; None compiles ahead of time and looks.

    Returns:
        The row.

    Raises:
        RuntimeError: nothing that was tried computes correctly, not even the present row.
    """
    table = present(path, settings.device)
    operation, first = group.jobs[0]
    now = table.launch(group.kernel, operation.limits(first, settings.dtype))
    best: tuple[float, LaunchRow] | None = None
    with side_stream(settings.device):
        problems = [op.problem(case, settings.dtype, settings.device) for op, case in group.jobs]
        gates = [Gate(problem) for problem in problems]
        for launch in candidates(now, group.space):
            row = LaunchRow(group.limits, launch)
            if not (survives or _compiles)(table, group.kernel, row):
                continue
            with trial(with_row(table, group.kernel, row)):
                times = [
                    _time(problem, gate, group.space.mode)
                    for problem, gate in zip(problems, gates, strict=True)
                ]
            kept = [time for time in times if time is not None]
            if len(kept) < len(times):
                continue
            mean = statistics.geometric_mean(kept)
            best = (mean, row) if best is None or mean < best[0] else best
    if best is None:
        raise RuntimeError(f"no launch of {group.kernel} computes {dict(group.limits)} correctly.")
    write_table(with_row(table, group.kernel, best[1]), path)
    return best[1]


def groups(todo: Sequence[Job], dtype: torch.dtype) -> Iterator[Group]:
    """Iterate over every kernel and the cases that share one of its rows, small shapes first."""
    for operation in dict.fromkeys(operation for operation, _ in todo):
        cases = [case for other, case in todo if other is operation]
        for kernel, space in operation.spaces.items():
            found: dict[tuple[int, ...], list[Job]] = {}
            for case in cases:
                shape = operation.limits(case, dtype)
                if space.used(shape):
                    telling = tuple(shape[name] for name in space.limits)
                    found.setdefault(telling, []).append((operation, case))
            for telling in sorted(found):
                limits = dict(zip(space.limits, telling, strict=True))
                yield Group(kernel, space, limits, found[telling])


def with_routes(table: Table, operations: Sequence[Operation[Any]], results: Results) -> Table:
    """Return a table that takes a kernel where it lost to no alternative in some results.

    Shapes with equal limits share a route, which takes the kernel only if every one of them allows
    it; a shape whose result is missing or invalid allows nothing.

    Args:
        table: measured from now on, unless the results are a dry run's.
        operations: those whose routes are replaced where the results have cases of theirs.
        results: of the table's architecture.
    """
    routes = dict(table.routes)
    dtype = getattr(torch, results.cases[0].dtype)
    for operation in operations:
        measured = {case.case: case for case in results.of(operation.name)}
        if not measured:
            continue
        found: dict[tuple[tuple[tuple[str, int], ...], bool], bool] = {}
        for case in operation.cases():
            if case.name not in measured:
                continue
            limits = tuple(operation.limits(case, dtype).items())
            modes: dict[bool, Mode] = {False: "forward", True: "both"}
            for training, mode in modes.items():
                if mode not in measured[case.name].drift:
                    continue
                factor = ratio(measured[case.name], mode)
                wins = factor is not None and factor >= 1
                found[limits, training] = found.get((limits, training), True) and wins
        rows = sorted(found.items(), key=lambda row: [bound for _, bound in row[0][0]])
        routes[operation.name] = tuple(
            Route(limits, training, triton) for (limits, training), triton in rows
        )
    return replace(table, routes=routes, measured=None if results.dry_run else results.environment)


def present(path: Path, device: torch.device) -> Table:
    """Return the table in a file or, where there is none yet, the one that answers now."""
    name = dispatch.architecture(device)
    held = read_table(path) if path.is_file() else dispatch.table(device)
    return replace(held, architecture=name, source=str(path))


def write_table(table: Table, path: Path) -> None:
    """Write a table; a reader sees either the whole file or none."""
    held = {
        "architecture": table.architecture,
        "measured": table.measured,
        "launches": {
            kernel: [_launch_row(row) for row in rows] for kernel, rows in table.launches.items()
        },
        "routes": {
            op: [
                {"limits": dict(route.limits), "training": route.training, "triton": route.triton}
                for route in routes
            ]
            for op, routes in table.routes.items()
        },
    }
    write_bytes((json.dumps(held, indent=1) + "\n").encode(), path)


@contextmanager
def trial(table: Table) -> Iterator[None]:
    """Let the kernels take their configurations from a table, as if it were the user's own."""
    before = os.environ.get("XDG_CACHE_HOME")
    with TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        write_table(table, user_table(table.architecture))
        dispatch.table.cache_clear()
        try:
            yield
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before
            dispatch.table.cache_clear()


def candidates(now: Launch, space: Space) -> list[Launch]:
    """Return the configurations to try, the present one first."""
    found = [now]
    for warps, stages, *sizes in product(
        space.num_warps, space.num_stages or (now.num_stages,), *space.blocks.values()
    ):
        blocks = {**now.blocks, **dict(zip(space.blocks, sizes, strict=True))}
        tried = Launch(blocks, warps, stages)
        if tried not in found:
            found.append(tried)
    return found


def with_row(table: Table, kernel: str, row: LaunchRow) -> Table:
    """Return a table with a row in place of that of equal limits, and ahead of wider ones."""
    others = [other for other in table.rows(kernel) if other.limits != row.limits]
    wider = (i for i, other in enumerate(others) if _covers(other.limits, row.limits))
    place = next(wider, len(others))
    rows = (*others[:place], row, *others[place:])
    return replace(table, launches={**table.launches, kernel: rows})


def _covers(outer: Mapping[str, int], inner: Mapping[str, int]) -> bool:
    """Whether every shape within the inner limits is within the outer ones."""
    return all(inner.get(name, bound + 1) <= bound for name, bound in outer.items())


def _time(problem: Problem, gate: Gate, mode: Mode) -> float | None:
    """The kernel's time under the present table; None if it is wrong or cannot run."""
    try:
        function = problem.providers[OURS]()
        if not gate.excess(function) <= 1:
            return None
        watch = stopwatch(problem.call(function, mode), problem.device)
    except refusals():
        return None
    return statistics.median(watch.cold() for _ in range(_READINGS))


def _compiles(table: Table, kernel: str, row: LaunchRow) -> bool:
    from cascade_kernels.ahead_of_time import resources, variants

    alone = replace(table, launches={**table.launches, kernel: (row,)})
    return not any(
        resources(variant, table.architecture).defects
        for variant in variants(alone)
        if variant.name.partition("/")[0] == kernel
    )


def _launch_row(row: LaunchRow) -> dict[str, object]:
    return {
        "limits": dict(row.limits),
        "blocks": dict(row.launch.blocks),
        "num_warps": row.launch.num_warps,
        "num_stages": row.launch.num_stages,
    }
