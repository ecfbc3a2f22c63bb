"""Kernels that the lint must find fault with, and one that it must not; prints what it found.

Run by `test_compiled.py` in a process of its own: the tests' process interprets kernels.
"""

import json
import sys
from typing import Any

import triton
import triton.language as tl
from ir_lint import defects

from cascade_bench.kernels.compiling import Variant, compile_variant
from cascade_kernels.launch_table import Launch

BLOCK = tl.constexpr(64)


@triton.jit
def _tile(X: tl.tensor, start: tl.tensor) -> tl.tensor:
    rows, columns = start + tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    return tl.load(X + rows[:, None] * BLOCK + columns[None, :])


@triton.jit
def _put(Y: tl.tensor, y: tl.tensor) -> None:
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    tl.store(Y + rows[:, None] * BLOCK + columns[None, :], y)


@triton.jit
def sound(X: tl.tensor, Y: tl.tensor, n: tl.tensor) -> None:
    """S^T = K Q^T, then dK += S^T Q: the loads are transposed, the accumulator is not."""
    k = _tile(X, 0)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(BLOCK, n, BLOCK):
        q = _tile(X, start)
        s = tl.dot(k, tl.trans(q))
        total = tl.dot(s.to(q.dtype), q, total)
    _put(Y, total)


@triton.jit
def transposed_accumulator(X: tl.tensor, Y: tl.tensor, n: tl.tensor) -> None:
    """S = Q K^T, then dK += trans(S) Q: wrong gradients on Hopper."""
    k = _tile(X, 0)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(BLOCK, n, BLOCK):
        q = _tile(X, start)
        s = tl.dot(q, tl.trans(k))
        total += tl.dot(tl.trans(s.to(q.dtype)), q)
    _put(Y, total)


@triton.jit
def transposed_after_the_loop(X: tl.tensor, Y: tl.tensor, n: tl.tensor) -> None:
    """The transposed value is what the loop carried."""
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(BLOCK, n, BLOCK):
        total = tl.dot(_tile(X, 0), _tile(X, start), total)
    _put(Y, tl.trans(total))


@triton.jit
def own_transpose(X: tl.tensor, Y: tl.tensor, n: tl.tensor) -> None:
    x = _tile(X, n)
    _put(Y, tl.dot(x, tl.trans(x)))


@triton.jit
def double(X: tl.tensor, Y: tl.tensor, n: tl.tensor) -> None:
    _put(Y, _tile(X, n).to(tl.float64) * 1.1)


@triton.jit
def fused(X: tl.tensor, Y: tl.tensor, n: tl.tensor) -> None:
    x = _tile(X, n).to(tl.float32)
    _put(Y, tl.fma(x, x, x))


@triton.jit
def nothing_to_pipeline(X: tl.tensor, Y: tl.tensor, n: tl.tensor) -> None:
    _put(Y, _tile(X, n))


@triton.jit
def spilling(X: tl.tensor, Y: tl.tensor, n: tl.tensor) -> None:
    """Eight tiles of 64 x 64 float32 are 1024 registers for each thread of one warp."""
    a, b, c, d = _tile(X, 0), _tile(X, n), _tile(X, 2 * n), _tile(X, 3 * n)
    e, f, g, h = tl.dot(a, b), tl.dot(b, c), tl.dot(c, d), tl.dot(d, a)
    _put(Y, e * f + g * h)
    _put(Y + n, e * g + f * h)


def _variant(kernel: Any) -> Variant:
    return Variant(
        name=kernel.__name__,
        kernel=kernel,
        arguments={"X": "*bf16", "Y": "*fp32", "n": "i32"},
        constants={},
        multiples=frozenset({"n"}),
        # What could copy asynchronously is pipelined.
        launch=Launch({}, 1 if kernel is spilling else 4, 1 if kernel in SYNCHRONOUS else 2),
        fusion=kernel is not fused,
    )


SYNCHRONOUS = (double, fused, own_transpose, spilling)


if __name__ == "__main__":
    kernels = (
        sound,
        transposed_accumulator,
        transposed_after_the_loop,
        own_transpose,
        double,
        fused,
        nothing_to_pipeline,
        spilling,
    )
    found = {}
    for kernel in kernels:
        variant = _variant(kernel)
        compiled = compile_variant(variant, sys.argv[1])
        found[kernel.__name__] = defects(variant, sys.argv[1], compiled)
    sys.stdout.write(json.dumps(found))
