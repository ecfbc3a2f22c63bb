"""`cascade bench kernels`: measure the operations of the network, or tune them."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.progress import warn
from cascade.results import Result
from cascade_bench.harness import bench, cases_of
from cascade_bench.kernels import group_norm_film_silu, joint_attention, sampler_step
from cascade_bench.kernels.plot import drawing
from cascade_bench.kernels.problem import Operation, Shape
from cascade_bench.kernels.shapes import urgency
from cascade_bench.kernels.tune import Job, present, trial, tune, with_routes, write_table
from cascade_bench.problem import Case
from cascade_bench.settings import BenchConfig
from cascade_bench.tables import tables
from cascade_kernels.dispatch import architecture
from cascade_kernels.launch_table import user_table

OPERATIONS: Final[tuple[Operation[Any], ...]] = (
    joint_attention.OPERATION,
    group_norm_film_silu.OPERATION,
    sampler_step.OPERATION,
)
_FIRST: Final = 3  # cases of each operation in a quick run


def bench_kernels(
    names: Sequence[str], wanted: Sequence[str], output: Path, config: BenchConfig, quick: bool
) -> tuple[Result, bool]:
    """Time every operation beside its alternatives; tables and a drawing go beside the record.

    Args:
        quick: the first three cases of each operation alone, which is a look and no result.
    """
    todo = jobs(names, wanted, quick=quick, dry_run=config.dry_run)
    require_gpu(config)
    stem = output / "kernels"
    result, complete = bench(
        "bench kernels",
        [case_of(operation, shape, config) for operation, shape in todo],
        stem,
        config,
        packages=("triton",),
        trial="a quick look at the first shapes" if quick else "",
    )
    if cases_of(result):  # a budget may be too small for one
        _show(result, stem)
    return result, complete


def _show(result: Result, stem: Path) -> None:
    """Write tables and the drawing beside the record."""
    path = result.write(stem, tables(result))
    if find_spec("matplotlib") is None:
        warn("No drawing of the ratios: matplotlib, of dreamcascade[evaluate], is not installed.")
        return
    write_bytes(drawing(result).encode(), path.with_suffix(".svg"))


def tune_kernels(
    names: Sequence[str], wanted: Sequence[str], output: Path | None, config: BenchConfig
) -> Path:
    """Choose launch configurations, measure with them, and route by what was measured.

    Returns:
        The table: in `output`, or the user's own, which then holds for every run on this machine.
    """
    todo = jobs(names, wanted, dry_run=config.dry_run)
    require_gpu(config)
    device, dtype = torch.device(config.device), dtype_of(config)
    name = architecture(device)
    path = user_table(name) if output is None else output / f"{name}.json"
    tune(todo, path, device, dtype)
    table = present(path, device)
    with trial(table):
        cases = [case_of(operation, shape, config) for operation, shape in todo]
        result, _ = bench("bench kernels", cases, path.with_name(f"{name}-measured"), config)
    write_table(with_routes(table, todo, result), path)
    return path


def jobs(
    names: Sequence[str] = (),
    wanted: Sequence[str] = (),
    *,
    quick: bool = False,
    dry_run: bool = False,
) -> list[Job]:
    """Choose operations and shapes: the most wanted networks first, operations in turn."""
    known = {operation.name: operation for operation in OPERATIONS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"There is no operation '{unknown[0]}'; known are {', '.join(known)}.")
    places: dict[Job, tuple[int, int]] = {}
    for operation in [known[name] for name in names] or OPERATIONS:
        shapes: Sequence[Shape] = operation.dry_cases() if dry_run else operation.cases()
        kept = [one for one in shapes if not wanted or any(part in one.name for part in wanted)]
        kept.sort(key=lambda shape: urgency(shape.name))
        seen: Counter[int] = Counter()
        for shape in kept[:_FIRST] if quick else kept:
            rank = urgency(shape.name)
            places[operation, shape] = rank, seen[rank]
            seen[rank] += 1
    if not places:
        raise UserError(
            f"No case has '{' or '.join(wanted)}' in its name; try 'if-i-m' or 'ragged'."
        )
    return sorted(places, key=places.__getitem__)


def case_of(operation: Operation[Any], shape: Shape, config: BenchConfig) -> Case:
    """Make an operation's shape a case of the harness."""
    device, dtype = torch.device(config.device), dtype_of(config)
    opening = partial(operation.problem, shape, dtype, device)
    return Case(operation.name, shape.name, shape.description, opening)


def dtype_of(config: BenchConfig) -> torch.dtype:
    """Return the type of the network's tensors."""
    # The interpreter computes bfloat16 wrongly (triton-lang/triton#11584).
    return torch.float32 if config.dry_run else torch.bfloat16


def require_gpu(config: BenchConfig) -> None:
    """Refuse to time kernels where there is no GPU."""
    if not config.dry_run and not torch.cuda.is_available():
        raise UserError(
            "The benchmark of the kernels needs a CUDA device and finds none; run it on a machine "
            "with a GPU, or see kernels/README.md of the project for what was measured."
        )
