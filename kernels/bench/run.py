"""Run the benchmark: every provider of every wanted case, checked first and then timed in turn.

The results file is written after every case, so that a run that was cut short goes on from there.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import group_norm_film_silu, joint_attention, sampler_step, shapes
from bench.device import described, peaks, state
from bench.problem import (
    REFERENCE,
    CannotError,
    Function,
    Gate,
    Operation,
    Problem,
    Shape,
    refusals,
)
from bench.results import OURS, CaseResult, Mode, Results, Row, read_results, write_results
from bench.timing import Stopwatch, measure, side_stream, stopwatch
from cascade.errors import UserError

RESULTS = Path(__file__).resolve().parent / "results"
OPERATIONS: tuple[Operation[Any], ...] = (
    joint_attention.OPERATION,
    group_norm_film_silu.OPERATION,
    sampler_step.OPERATION,
)
_FIRST = 3  # cases of each operation in a quick run


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: in which every provider has its turn.
        repeats: readings of a provider in one round.
        dtype: of the network's tensors.
        minutes: begin no case that is likely to end later; None is no limit.
        dry_run: prove the plumbing on a CPU, where the times mean nothing.
    """

    rounds: int = 6
    repeats: int = 4
    dtype: torch.dtype = torch.bfloat16
    minutes: float | None = None
    dry_run: bool = False

    @property
    def device(self) -> torch.device:
        """Where to measure."""
        return torch.device("cpu" if self.dry_run else "cuda")


QUICK = Settings(rounds=3, repeats=3)
# The interpreter computes bfloat16 wrongly (triton-lang/triton#11584).
DRY_RUN = Settings(rounds=2, repeats=1, dtype=torch.float32, dry_run=True)

Job = tuple[Operation[Any], Shape]


def jobs(
    names: Sequence[str] = (),
    wanted: Sequence[str] = (),
    *,
    quick: bool = False,
    dry_run: bool = False,
) -> list[Job]:
    """Choose what to measure.

    Args:
        names: of operations; none is all.
        wanted: parts of the cases' names; none is all.
        quick: the first three cases of each operation.
        dry_run: the small cases instead.

    Raises:
        UserError: an operation is unknown, or no case has such a name.
    """
    known = {operation.name: operation for operation in OPERATIONS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"There is no operation '{unknown[0]}'; known are {', '.join(known)}.")
    chosen: list[Job] = []
    for operation in [known[name] for name in names] or OPERATIONS:
        cases = operation.dry_cases() if dry_run else operation.cases()
        kept = [case for case in cases if not wanted or any(part in case.name for part in wanted)]
        chosen += [(operation, case) for case in (kept[:_FIRST] if quick else kept)]
    if not chosen:
        raise UserError(
            f"No case has '{' or '.join(wanted)}' in its name; try 'if-i-m' or 'ragged'."
        )
    return chosen


def bench(
    todo: Sequence[Job], path: Path, settings: Settings, commit: str | None = None
) -> tuple[Results, bool]:
    """Measure cases and write them to a results file, beside those that it holds already.

    Args:
        todo: what to measure; cases in the file are done.
        path: of the results file.
        settings: how.
        commit: of the code, where a copy of the checkout has lost its history.

    Returns:
        The results, and whether everything wanted is in them.

    Raises:
        UserError: no GPU, the file is of another kind, a dry run would be filed as a result, or a
            case lost the device; the file then says so, and the next run goes on behind it.
    """
    _check(path, settings)
    start, longest = time.monotonic(), 0.0
    results = _begin(path, settings, commit)
    done = {(case.op, case.case) for case in results.cases}
    left = [(op, case) for op, case in todo if (op.name, case.name) not in done]
    for operation, case in left:
        begun = time.monotonic()
        if settings.minutes is not None and begun - start + longest > 60 * settings.minutes:
            return results, False
        found = bench_case(operation, case, settings)
        results = results.model_copy(update={"cases": (*results.cases, found)})
        write_results(results, path)
        longest = max(longest, time.monotonic() - begun)
        print(f"{operation.name}, {case.name}: {_outcome(found)}", flush=True)
        if _lost(settings.device):
            raise UserError(
                f"{operation.name}, {case.name} lost the device, as {path} tells; start again to "
                "go on with the other shapes."
            )
    return results, True


def bench_case(operation: Operation[Any], case: Shape, settings: Settings) -> CaseResult:
    """Check and time every provider of one case."""
    device = settings.device
    torch.manual_seed(0)
    torch.compiler.reset()  # a compiler that has seen many shapes gives up on specialising
    before = state(device)
    with side_stream(device), torch._functorch.config.patch(donated_buffer=False):
        # A retained graph, which timing a backward pass alone takes, may donate no buffer.
        problem = operation.problem(case, settings.dtype, device)
        try:
            rows, drift = _measure(problem, settings)
        except torch.AcceleratorError as error:
            # No telling which provider it was: devices report such errors late.
            rows = [_refused(mode, OURS, error) for mode in problem.modes]
            drift = dict.fromkeys(problem.modes, 0.0)
    return CaseResult(
        op=operation.name,
        case=case.name,
        description=case.description,
        dtype=str(settings.dtype).removeprefix("torch."),
        work=dict(problem.work),
        drift=drift,
        state=(before, state(device)),
        rows=tuple(rows),
    )


def _measure(problem: Problem, settings: Settings) -> tuple[list[Row], dict[Mode, float]]:
    """The rows of every provider, and the drift of every mode."""
    admitted, rows = _admit(problem)
    drift: dict[Mode, float] = {}
    for mode in problem.modes:
        timed, drift[mode] = _time(problem, admitted, mode, settings)
        rows += timed
    return rows, drift


def _lost(device: torch.device) -> bool:
    """Whether an error, such as an illegal address, has ended this process's use of a device."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except torch.AcceleratorError:
        return True
    return False


def _admit(problem: Problem) -> tuple[dict[str, tuple[Function, float]], list[Row]]:
    """The providers that are right, with their errors, and rows for the others."""
    gate = Gate(problem)
    admitted: dict[str, tuple[Function, float]] = {}
    rows: list[Row] = []
    for name, make in problem.providers.items():
        try:
            function = make()
            excess = gate.excess(function)
        except refusals() as error:
            if _lost(problem.device):
                raise
            rows += [_refused(mode, name, error) for mode in problem.modes]
            continue
        if excess <= 1:
            admitted[name] = function, excess
            continue
        finite = excess < float("inf")
        reason = f"{excess:.3g} times the error allowed" if finite else "not a number"
        rows += [
            Row(
                mode=mode,
                provider=name,
                status="wrong",
                reason=reason,
                error=excess if finite else None,
            )
            for mode in problem.modes
        ]
    return admitted, rows


def _time(
    problem: Problem, admitted: dict[str, tuple[Function, float]], mode: Mode, settings: Settings
) -> tuple[list[Row], float]:
    watches: dict[str, Stopwatch] = {}
    rows: list[Row] = []
    for name, (function, _) in admitted.items():
        try:
            watches[name] = stopwatch(problem.call(function, mode), problem.device)
        except refusals() as error:
            if _lost(problem.device):
                raise
            rows.append(_refused(mode, name, error))
    if not watches:
        return rows, 1.0
    steady = REFERENCE if REFERENCE in watches else next(iter(watches))
    timings, drift = measure(watches, steady, settings.rounds, settings.repeats)
    rows += [
        Row(mode=mode, provider=name, status="ok", error=admitted[name][1], timing=timing)
        for name, timing in timings.items()
    ]
    return rows, drift


def _refused(mode: Mode, provider: str, error: Exception) -> Row:
    # Some libraries' messages are pages long; their first line says what it is.
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if not isinstance(error, CannotError):
        reason = f"{type(error).__name__}: {reason}"
    return Row(mode=mode, provider=provider, status="cannot", reason=reason)


def _check(path: Path, settings: Settings) -> None:
    if settings.dry_run and path.resolve().is_relative_to(RESULTS):
        raise UserError("A dry run is no result; give it an --output outside the results' folder.")
    if not settings.dry_run and not torch.cuda.is_available():
        raise UserError(
            "The benchmark needs a CUDA device and finds none; run it on such a machine."
        )


def _begin(path: Path, settings: Settings, commit: str | None) -> Results:
    """The file's results, if they are of this run's kind, or new ones."""
    if not path.is_file():
        return Results(
            dry_run=settings.dry_run,
            shapes=shapes.VERSION,
            rounds=settings.rounds,
            environment=described(settings.device, commit),
            peaks=peaks(settings.device),
        )
    held = read_results(path)
    here = described(settings.device, commit) | {"date": held.environment["date"]}
    kind = (settings.dry_run, shapes.VERSION, settings.rounds, here)
    if kind != (held.dry_run, held.shapes, held.rounds, held.environment):
        raise UserError(
            f"{path} was measured with other code, versions or settings; remove it or give another "
            "--output."
        )
    return held


def _outcome(found: CaseResult) -> str:
    parts = []
    for mode in found.drift:
        ours, best = found.ours(mode), found.best(mode)
        steady = "" if found.valid(mode) else " (the device drifted)"
        told = "no time" if ours is None else f"{ours:.1f} us"
        versus = "" if ours is None or best is None else f", {best[1] / ours:.2f}x {best[0]}"
        parts.append(f"{mode} {told}{versus}{steady}")
    return "; ".join(parts)
