"""One case: its providers checked, then timed in turn, each mode apart."""

import json
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from cascade.errors import UserError
from cascade_bench.device import state
from cascade_bench.problem import CannotError, Case, Problem, Provider
from cascade_bench.records import CaseResult, Mode, Row
from cascade_bench.settings import BenchConfig
from cascade_bench.timing import Run, Stopwatch, measure, side_stream


def bench_case(case: Case, config: BenchConfig) -> CaseResult:
    """Check and time every provider of one case."""
    device = torch.device(config.device)
    torch.manual_seed(0)
    torch.compiler.reset()  # a compiler that has seen many shapes gives up on specialising
    before = state(device)
    with side_stream(device), torch._functorch.config.patch(donated_buffer=False):
        # A retained graph, which timing a backward pass alone takes, may donate no buffer.
        problem = case.open()
        try:
            rows, drift = _measure(problem, config)
        except torch.AcceleratorError as error:
            # No telling which provider it was: devices report such errors late.
            rows = [_refused(mode, problem.ours, error) for mode in problem.modes]
            drift = dict.fromkeys(problem.modes, 0.0)
    return CaseResult(
        group=case.group,
        case=case.name,
        description=case.description,
        baseline=problem.baseline,
        ours=problem.ours,
        variants=problem.variants,
        work=dict(problem.work),
        images=problem.images,
        drift=drift,
        state=(before, state(device)),
        rows=tuple(rows),
    )


def _measure(problem: Problem, config: BenchConfig) -> tuple[list[Row], dict[Mode, float]]:
    admitted, rows = admit(problem)
    drift: dict[Mode, float] = {}
    for mode in problem.modes:
        timed, drift[mode] = _time(problem, admitted, mode, config)
        rows += timed
    return rows, drift


def lost(device: torch.device) -> bool:
    """Tell whether an error, such as an illegal address, has ended this process's device."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except torch.AcceleratorError:
        return True
    return False


def admit(problem: Problem) -> tuple[dict[str, tuple[Provider, float]], list[Row]]:
    """Return the providers that are right, with their errors, and rows for the others."""
    gate = problem.gate()
    admitted: dict[str, tuple[Provider, float]] = {}
    rows: list[Row] = []
    for name, make in problem.providers.items():
        try:
            provider = make()
            excess = gate(provider)
        except refusals() as error:
            if lost(problem.device):
                raise
            rows += [_refused(mode, name, error) for mode in problem.modes]
            continue
        if excess <= 1:
            admitted[name] = provider, excess
            continue
        finite = excess < float("inf")
        reason = f"{excess:.3g} times the error allowed" if finite else "not a number"
        error_or_none = excess if finite else None
        rows += [
            Row(mode=mode, provider=name, status="wrong", reason=reason, error=error_or_none)
            for mode in problem.modes
        ]
    return admitted, rows


def _time(
    problem: Problem,
    admitted: Mapping[str, tuple[Provider, float]],
    mode: Mode,
    config: BenchConfig,
) -> tuple[list[Row], float]:
    watches: dict[str, Stopwatch] = {}
    weights: dict[str, int | None] = {}
    rows: list[Row] = []
    for name, (provider, _) in admitted.items():
        try:
            run = problem.call(provider, mode)
            watches[name] = problem.watch(run)
            weights[name] = peak_bytes(run, problem.device) if problem.weighed else None
        except refusals() as error:
            if lost(problem.device):
                raise
            watches.pop(name, None)
            rows.append(_refused(mode, name, error))
    if not watches:
        return rows, 1.0
    steady = problem.baseline if problem.baseline in watches else next(iter(watches))
    timings, drift = measure(watches, steady, config.rounds, config.repeats)
    rows += [
        Row(
            mode=mode,
            provider=name,
            status="ok",
            error=admitted[name][1],
            peak=weights[name],
            comparable=problem.comparable(admitted[name][0]),
            flops=problem.flops(admitted[name][0], mode),
            timing=timing,
        )
        for name, timing in timings.items()
    ]
    return rows, drift


def _refused(mode: Mode, provider: str, error: Exception) -> Row:
    # Some libraries' messages are pages long; their first line says what it is.
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if not isinstance(error, CannotError | UserError):
        reason = f"{type(error).__name__}: {reason}"
    return Row(mode=mode, provider=provider, status="cannot", reason=reason)


def refusals() -> tuple[type[Exception], ...]:
    """Return what providers raise that cannot run a problem.

    FlexAttention asserts what it supports; Triton's errors are a kind of their own.
    """
    common = (RuntimeError, ValueError, AssertionError, UserError)
    if find_spec("triton") is None:
        return common
    from triton.runtime.errors import TritonError

    return (*common, TritonError)


def peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most that a call has allocated at once, beside what was there before it.

    On a CPU, from the profiler's log of PyTorch's allocator: the scratch of oneDNN and MKL is not
    in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        log.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = [event["args"] for event in events if event.get("name") == "[memory]"]
    if not held:
        return 0
    before = held[0]["Total Allocated"] - held[0]["Bytes"]
    return int(max(args["Total Allocated"] for args in held) - before)
