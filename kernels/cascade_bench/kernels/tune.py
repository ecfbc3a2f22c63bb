"""Choose launch configurations, and the shapes for which a kernel is taken at all, by measuring.

The rows that are tried differ from the present one in a few values; few of them run, which
`pruning` chooses, and those that compute wrongly are dropped before they are timed. What was chosen
is a table of numbers, so that every later run launches alike: nothing is tuned while a network
runs.
"""

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import torch

from cascade.files import write_bytes
from cascade.progress import progress_bar, say
from cascade.results import Result
from cascade_bench.harness import cases_of
from cascade_bench.kernels.problem import (
    OURS,
    Gate,
    KernelProblem,
    Operation,
    Shape,
    Space,
    path_of,
)
from cascade_bench.kernels.pruning import Costs, compiled_costs, compilers, pruned
from cascade_bench.measuring import refusals
from cascade_bench.records import CaseResult, Mode
from cascade_bench.timing import side_stream, stopwatch
from cascade_kernels import dispatch
from cascade_kernels.launch_table import Launch, LaunchRow, Route, Table, read_table, user_table

Job: TypeAlias = tuple[Operation[Any], Shape]

_READINGS: Final = 5

# Limits, training and eager of a route.
_Kind: TypeAlias = tuple[tuple[tuple[str, int], ...], bool, bool]


@dataclass(frozen=True)
class Group:
    """The cases that share one row of a kernel's table."""

    kernel: str
    space: Space
    limits: Mapping[str, int]
    jobs: Sequence[Job]


def tune(todo: Sequence[Job], path: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Time the configurations of every kernel on the wanted cases, and write the fastest.

    The table is extended if it exists, else the present one is.
    """
    found = list(groups(todo, dtype))
    with progress_bar() as bar, compilers() as pool:
        task = bar.add_task("tuning", total=len(found), details="")
        for group in found:
            bar.update(task, details=group.kernel)
            row = tune_group(group, path, device, dtype, partial(compiled_costs, pool, bar))
            bar.advance(task)
            say(f"{group.kernel} {dict(row.limits)}: {row.launch}")


def tune_group(
    group: Group,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    costs: Costs,
) -> LaunchRow:
    """Put the row with the least geometric mean of times over a group's cases into a table.

    Args:
        path: of the table; it is extended if it exists, else the present one is.
        costs: what rows take, by which few of them are timed.

    Raises:
        RuntimeError: nothing that was tried computes correctly, not even the present row.
    """
    table = present(path, device)
    operation, first = group.jobs[0]
    now = table.launch(group.kernel, operation.limits(first, dtype))
    rows = [LaunchRow(group.limits, launch) for launch in candidates(now, group.space)]
    best: tuple[float, LaunchRow] | None = None
    with side_stream(device):
        problems = [op.problem(case, dtype, device) for op, case in group.jobs]
        gates = [Gate(problem) for problem in problems]
        for row in pruned(rows, costs(table, group.kernel, rows), table.architecture):
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


def with_routes(table: Table, todo: Sequence[Job], result: Result) -> Table:
    """Return a table that takes a kernel where it lost to no alternative in a record.

    Shapes with equal limits share a route, which takes the kernel only if every one of them allows
    it; a shape whose result is missing or invalid allows nothing. Eager calls are judged by their
    wall time, those in graphs by the device's. Where the kernel has its backward pass from several,
    the fastest of a shape's is routed as well. A trial measures no table.
    """
    routes = dict(table.routes)
    measured = {(case.group, case.case): case for case in cases_of(result)}
    for operation in dict.fromkeys(operation for operation, _ in todo):
        paths: dict[_Kind, str] = {}
        backward: dict[_Kind, str] = {}
        for shape in (shape for other, shape in todo if other is operation):
            case = measured.get((operation.name, shape.name))
            limits = tuple(operation.limits(shape, torch.bfloat16).items())
            for training, eager, wins in _wins(case):
                key = limits, training, eager
                path = "triton" if wins else "reference"
                paths[key] = path if paths.get(key, path) == path else "reference"
            for eager, path in _backward(case):
                key = limits, True, eager
                backward[key] = path if backward.get(key, path) == path else "own"
        routes[operation.name] = _routes(paths)
        if backward:
            routes[f"{operation.name}_backward"] = _routes(backward)
    return replace(table, routes=routes, measured=None if result.trial else result.environment)


def _routes(paths: Mapping[_Kind, str]) -> tuple[Route, ...]:
    """Return routes from the least limits on."""
    rows = sorted(paths.items(), key=lambda row: [bound for _, bound in row[0][0]])
    return tuple(Route(*key, path) for key, path in rows)


def _backward(case: CaseResult | None) -> Iterator[tuple[bool, str]]:
    """Yield the fastest path of a kernel's backward pass, eager and not, where it has several."""
    if case is not None and case.variants and "both" in case.drift:
        for eager in (False, True):
            yield eager, path_of(case.own("both", eager))


def _wins(case: CaseResult | None) -> Iterator[tuple[bool, bool, bool]]:
    """For training and sampling, if they were measured, eager and not: if ours lost to nobody."""
    modes: dict[bool, Mode] = {False: "forward", True: "both"}
    for (training, mode), eager in product(modes.items(), (False, True)):
        if case is not None and mode in case.drift:
            gain = case.gain(mode, eager)
            yield training, eager, gain is not None and gain >= 1


def present(path: Path, device: torch.device) -> Table:
    """Return the table in a file or, where there is none yet, the one that answers now."""
    name = dispatch.architecture(device)
    held = read_table(path) if path.is_file() else dispatch.table(device)
    return replace(held, architecture=name, source=str(path))


def write_table(table: Table, path: Path) -> None:
    """Write a table; a reader sees either the whole file or none."""
    launches = {
        kernel: [{"limits": dict(row.limits), **asdict(row.launch)} for row in rows]
        for kernel, rows in table.launches.items()
    }
    routes = {
        op: [{**asdict(route), "limits": dict(route.limits)} for route in rows]
        for op, rows in table.routes.items()
    }
    head = {"architecture": table.architecture, "measured": table.measured}
    held = {**head, "launches": launches, "routes": routes}
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
    """Return whether every shape within the inner limits is within the outer ones."""
    return all(inner.get(name, bound + 1) <= bound for name, bound in outer.items())


def _time(problem: KernelProblem, gate: Gate, mode: Mode) -> float | None:
    """Time the kernel under the present table; None if it is wrong or cannot run."""
    try:
        function = problem.providers[OURS]()
        if not gate.excess(function) <= 1:
            return None
        watch = stopwatch(problem.call(function, mode), problem.device)
    except refusals():
        return None
    return statistics.median(watch.cold() for _ in range(_READINGS))
