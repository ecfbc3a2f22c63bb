"""Which launch configurations are worth a GPU's time, by what their compilations take.

Compiling needs no GPU and many cores do it side by side, so that a GPU times few of them.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from typing import Final, TypeAlias

from rich.progress import Progress

from cascade.launch import cores
from cascade_bench.kernels.compiling import compile_variant, resident
from cascade_kernels.launch_table import LaunchRow, Table

MOST: Final = 6
"""Configurations of a shape that are timed."""


@dataclass(frozen=True)
class Cost:
    """What a row takes, at the most of all its compilations.

    Attributes:
        registers: of one thread.
        shared: shared memory of one program, bytes.
        excess: it spills, needs more shared memory than there is, or does not compile.
        wgmma: it multiplies matrices by Hopper's instructions of whole warp groups.
    """

    registers: int = 0
    shared: int = 0
    excess: bool = False
    wgmma: bool = False

    def resident(self, row: LaunchRow, architecture: str) -> int:
        """Return how many programs of the row a multiprocessor holds at once."""
        return resident(self.registers, self.shared, row.launch.num_warps, architecture)


Costs: TypeAlias = Callable[[Table, str, Sequence[LaunchRow]], Iterable[Cost]]
"""Of rows of a kernel, on a table's architecture."""


def pruned(rows: Sequence[LaunchRow], costs: Iterable[Cost], architecture: str) -> list[LaunchRow]:
    """Return the first row, which is the present one, and the most promising of the others.

    What spills or asks for too much is out. Those with `wgmma` rank ahead of those without, then
    those of which a multiprocessor holds more at once. Ranks compare rows of the same block sizes
    well and of others badly: every block sizes' first come ahead of any one's second.
    """
    (present, _), *others = zip(rows, costs, strict=True)
    fit = [
        (
            (cost.wgmma, resident(cost.registers, cost.shared, row.launch.num_warps, architecture)),
            row,
        )
        for row, cost in others
        if not cost.excess
    ]
    fit.sort(key=lambda one: one[0], reverse=True)
    places = Counter({_blocks(present): 1})
    found: list[tuple[int, LaunchRow]] = []
    for _, row in fit:
        found.append((places[_blocks(row)], row))
        places[_blocks(row)] += 1
    found.sort(key=lambda one: one[0])
    return [present, *(row for _, row in found[: MOST - 1])]


def cost_of(table: Table, kernel: str, row: LaunchRow) -> Cost:
    """Compile a row of a kernel for a table's architecture."""
    from triton.runtime.errors import TritonError

    from cascade_bench.kernels.variants import variants  # imports triton

    alone = replace(table, launches={**table.launches, kernel: (row,)})
    own = (one for one in variants(alone) if one.name.partition("/")[0] == kernel)
    try:
        found = [compile_variant(variant, table.architecture) for variant in own]
    except TritonError:
        return Cost(excess=True)
    return Cost(
        registers=max(one.registers for one in found),
        shared=max(one.shared for one in found),
        excess=any(one.excess for one in found),
        wgmma=any("wgmma" in one.texts.get("ptx", "") for one in found),
    )


def compilers() -> ProcessPoolExecutor:
    """Return processes that compile, one a core.

    They are spawned: a process that has used a GPU cannot be forked.
    """
    return ProcessPoolExecutor(cores(), get_context("spawn"), _compile_only)


def _compile_only() -> None:
    os.environ["TRITON_INTERPRET"] = "0"  # a dry run's; Triton reads it when it is imported


def compiled_costs(
    pool: ProcessPoolExecutor,
    bar: Progress,
    table: Table,
    kernel: str,
    rows: Sequence[LaunchRow],
) -> Iterator[Cost]:
    """Yield the cost of each row, compiled side by side."""
    task = bar.add_task("compiling", total=len(rows), details=kernel)
    for cost in pool.map(cost_of, repeat(table), repeat(kernel), rows):
        bar.advance(task)
        yield cost
    bar.remove_task(task)


def _blocks(row: LaunchRow) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(row.launch.blocks.items()))
