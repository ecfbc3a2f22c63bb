"""The compilations that a launch table asks of GroupNorm with FiLM and activation."""

from collections.abc import Iterator
from inspect import signature
from typing import Any

from cascade_kernels.launch_table import Launch, Table
from cascade_kernels.variant import Variant

_IMAGES = ("X", "SKIP", "Y", "DY", "DX", "DSKIP")
_OPTIONAL = ("SKIP", "DSKIP", "SCALE", "SHIFT", "DSCALE", "DSHIFT")
_MULTIPLES = {"hw", "c1", "c2", "scale_b", "shift_b", "slice_rows"}
_IDLE = 16  # lanes of a one-pass program beyond its whole groups


def describe(table: Table, kernels: tuple[Any, ...]) -> Iterator[Variant]:
    """Describe every row of some kernels: with all inputs in fp32, with the fewest in bf16."""
    for kernel in kernels:
        optional = set(_OPTIONAL) & set(signature(kernel.fn).parameters)
        for row in table.rows(kernel.fn.__name__):
            yield _variant(kernel, row.launch, "fp32", set())
            if optional:
                yield _variant(kernel, row.launch, "bf16", optional)


def _variant(kernel: Any, row: Launch, element: str, absent: set[str]) -> Variant:
    given = {
        "SKIP_SCALE": 1.0 if absent else 0.5,
        "EPS": 1e-5,
        "ACTIVATION": "silu" if absent else "gelu",
        "WIDTH": row.blocks.get("BLOCK_C", 0) - _IDLE,
        "STAGES": row.num_stages,
        **dict.fromkeys(absent),
        **row.blocks,
    }
    names = list(signature(kernel.fn).parameters)
    blocks = "".join(f"/{block}{size}" for block, size in row.blocks.items())
    return Variant(
        name=f"{kernel.fn.__name__}/{element}{blocks}/w{row.num_warps}s{row.num_stages}",
        kernel=kernel,
        arguments={name: _kind(name, element) for name in names if name not in given},
        constants={name: given[name] for name in names if name in given},
        multiples=frozenset(_MULTIPLES & set(names)),
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        asynchronous=row.num_stages > 1,
    )


def _kind(argument: str, element: str) -> str:
    if not argument.isupper():
        return "i32"
    return f"*{element}" if argument in _IMAGES else "*fp32"
