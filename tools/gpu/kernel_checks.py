"""The pieces that check, time and tune the kernels."""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.goals import goals
from bench.problem import Function, Gate, Operation, Problem
from bench.report import write_report
from bench.results import OURS, read_results
from bench.run import DRY_RUN, OPERATIONS, Settings, bench, jobs
from bench.timing import side_stream
from bench.tune import (
    Group,
    Survives,
    groups,
    present,
    trial,
    tune_group,
    with_routes,
    write_table,
)
from cascade_kernels.dispatch import architecture
from gpu.pieces import (
    Context,
    FailedError,
    IncompleteError,
    NotCheckedError,
    Piece,
    pieces_that,
)
from gpu.program import ROOT, run_program, tail

TESTS = ROOT / "tests" / "kernels"
KERNELS = "kernels"
"""The part whose pieces decide whether a table may call itself measured."""

TABLE = "table"
_NUMERICS = "tests"
_NO_TESTS = 5  # pytest's exit status when its selection is empty
_FAULTY = 99  # the exit status that the memory checker is told to give


def kernel_pieces(context: Context) -> list[Piece]:
    """Checks first; the benchmark times only what passed its own."""
    pieces = [_tests(path) for path in sorted(TESTS.glob("test_*.py")) if _has_gpu_tests(path)]
    for operation in OPERATIONS:
        pieces += [
            Piece(f"memory {operation.name}", _of(operation, _memory)),
            Piece(f"repeatability {operation.name}", _of(operation, _repeatable)),
            Piece(f"graph capture {operation.name}", _of(operation, _capturable)),
            Piece(f"fullgraph {operation.name}", _of(operation, _compilable)),
        ]
    chosen = dict.fromkeys(op for op, _ in jobs(wanted=context.shapes, dry_run=context.dry_run))
    pieces += [Piece(f"benchmark {op.name}", _of(op, _benchmark)) for op in chosen]
    return [*pieces, Piece(TABLE, _table)]


def tuning_pieces(context: Context) -> list[Piece]:
    """One piece per kernel and row of its table."""
    todo = jobs(wanted=context.shapes, dry_run=context.dry_run)
    return [
        Piece(f"tune {group.kernel} {_told(group)}", _tuning(group))
        for group in groups(todo, _settings(context).dtype)
    ]


def first_problem(operation: Operation[Any], context: Context) -> Problem:
    """Draw the inputs of an operation's first case; anew for every call."""
    cases = operation.dry_cases() if context.dry_run else operation.cases()
    return operation.problem(cases[0], _settings(context).dtype, context.device)


def _settings(context: Context) -> Settings:
    return DRY_RUN if context.dry_run else Settings(minutes=context.left)


def _of(
    operation: Operation[Any], check: Callable[[Operation[Any], Context], str]
) -> Callable[[Context], str]:
    return lambda context: check(operation, context)


def _tests(path: Path) -> Piece:
    def run(context: Context) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(path)]
        done = run_program(command, context)
        if done.returncode not in (0, _NO_TESTS):
            raise FailedError(tail(done))
        summary = done.stdout.strip().rpartition("\n")[2]
        if " passed" not in summary:
            raise NotCheckedError(summary)
        return summary

    return Piece(f"{_NUMERICS} {path.stem}", run)


def _has_gpu_tests(path: Path) -> bool:
    return "pytest.mark.gpu" in path.read_text(encoding="utf-8")


def _memory(operation: Operation[Any], context: Context) -> str:
    """NVIDIA's memory checker over the smallest case, every tensor in memory of its own."""
    checker = shutil.which("compute-sanitizer")
    if context.dry_run or checker is None:
        raise NotCheckedError("compute-sanitizer is not installed")
    command = [checker, "--tool", "memcheck", "--error-exitcode", str(_FAULTY), sys.executable]
    script = Path(__file__).with_name("once.py")
    done = run_program([*command, str(script), operation.name], context)
    if done.returncode != 0:
        raise FailedError(tail(done))
    return "no faulty access"


def _repeatable(operation: Operation[Any], context: Context) -> str:
    problem = first_problem(operation, context)
    function = problem.providers[OURS]()
    first, second = problem.answers(function), problem.answers(function)
    if not all(map(torch.equal, first, second)):
        raise FailedError("two runs on the same inputs differ")
    return "two runs equal to the last bit"


def _capturable(operation: Operation[Any], context: Context) -> str:
    """A captured call, replayed on inputs that were changed in place, gives what a call gives."""
    if context.dry_run:
        raise NotCheckedError("a CPU has no graphs")
    problem = first_problem(operation, context)
    function = problem.providers[OURS]()
    with side_stream(context.device), torch.no_grad():
        function(*problem.leaves)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            captured = function(*problem.leaves)
        for leaf in problem.leaves:
            leaf.normal_()
        graph.replay()
        if not all(map(torch.equal, _several(captured), _several(function(*problem.leaves)))):
            raise FailedError("a replayed graph and a call differ")
    return "a replay equals a call to the last bit"


def _compilable(operation: Operation[Any], context: Context) -> str:
    problem = first_problem(operation, context)
    backend = "aot_eager" if context.dry_run else "inductor"
    torch.compiler.reset()
    whole: Function = torch.compile(problem.providers[OURS](), fullgraph=True, backend=backend)
    excess = Gate(problem).excess(whole)
    if not excess <= 1:
        raise FailedError(f"compiled, it has {excess:.3g} times the error allowed")
    return f"one graph with {backend}, {excess:.2f} of the error allowed"


def _benchmark(operation: Operation[Any], context: Context) -> str:
    todo = jobs([operation.name], context.shapes, dry_run=context.dry_run)
    path = _results(context)
    tuned = _table_path(context)
    table = trial(present(tuned, context.device)) if tuned.is_file() else nullcontext()
    with table:
        results, complete = bench(todo, path, _settings(context), context.commit)
    count = len(list(results.of(operation.name)))
    if not complete:
        raise IncompleteError(f"{count} of {len(todo)} shapes are done")
    if importlib.util.find_spec("matplotlib") is not None:
        write_report(path)
    return f"{count} shapes in {path.name}"


def _table(context: Context) -> str:
    """The launch table whose routes follow from the benchmark, and what of the goals is met.

    It lets kernels run by default, and so is written only when nothing is left or wrong.
    """
    failed = [name for name in pieces_that("failed", KERNELS, context) if name != TABLE]
    if failed:
        raise FailedError(f"no table is written: {', '.join(failed)} failed")
    skipped = [name for name in pieces_that("not checked", KERNELS, context) if _NUMERICS in name]
    if skipped and not context.dry_run:
        raise FailedError(f"no table is written: {', '.join(skipped)} did not run")
    results = read_results(_results(context))
    done = {(case.op, case.case) for case in results.cases}
    todo = jobs(wanted=context.shapes, dry_run=context.dry_run)
    left = [case.name for operation, case in todo if (operation.name, case.name) not in done]
    if left:
        raise IncompleteError(f"{len(left)} shapes are not benched yet")
    path = _table_path(context)
    write_table(with_routes(present(path, context.device), OPERATIONS, results), path)
    met = [goal.verdict for goal in goals(results)]
    return f"{path.name}; goals met: {met.count('met')} of {len(met)}"


def _tuning(group: Group) -> Callable[[Context], str]:
    def run(context: Context) -> str:
        row = tune_group(group, _table_path(context), _settings(context), _survives(context))
        return f"{dict(row.launch.blocks)}, {row.launch.num_warps} warps, {row.launch.num_stages}"

    return run


def _survives(context: Context) -> Survives | None:
    """Two candidates in a dry run: the interpreter compiles nothing ahead of time, and is slow."""
    if not context.dry_run:
        return None
    few = iter(range(2))
    return lambda table, kernel, row: next(few, None) is not None


def _told(group: Group) -> str:
    return " ".join(f"{name}{value}" for name, value in group.limits.items())


def _results(context: Context) -> Path:
    return context.output / "results.json"


def _table_path(context: Context) -> Path:
    return context.output / f"{architecture(context.device)}.json"


def _several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)
