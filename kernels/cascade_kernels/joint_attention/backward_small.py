"""Triton backward pass of joint attention for small images: one launch instead of two.

One program holds all queries of one head and walks over the keys once, so that the logits and
their gradient are computed once for dK, dV and dQ: five matrix products instead of seven. An 8x8
image has so little work that the launches of the general path would be most of its time.

Shapes and formulas are those of the general backward pass.
"""

import triton
from triton import language as tl

from cascade_kernels.joint_attention.forward import (
    LOG2E,
    load_rows,
    store_rows,
    visible_tokens,
)


@triton.jit
def _source(
    dq: tl.tensor, q: tl.tensor, grad: tl.tensor, lse: tl.tensor, delta: tl.tensor,
    K: tl.tensor, V: tl.tensor, DK: tl.tensor, DV: tl.tensor,
    k_n: tl.tensor, v_n: tl.tensor, gradient_n: tl.tensor, keys: tl.tensor, visible: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Write dK and dV of one source and add to dQ^T, BLOCK_D x queries, what it gives to it."""
    for start in range(0, keys, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        k = load_rows(K, rows, k_n, visible, HEAD, BLOCK_D, True)
        v = load_rows(V, rows, v_n, visible, HEAD, BLOCK_D, True)
        logits = tl.dot(k, tl.trans(q), input_precision="ieee") * (SCALE * LOG2E)
        weight = tl.exp2(logits - lse[None, :])
        weight = tl.where(rows[:, None] < visible, weight, 0.0)
        dv = tl.dot(weight.to(grad.dtype), grad, input_precision="ieee")
        store_rows(DV, dv, rows, gradient_n, keys, HEAD, BLOCK_D)
        ds = weight * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
        ds = ds.to(q.dtype)
        dk = tl.dot(ds, q, input_precision="ieee") * SCALE
        store_rows(DK, dk, rows, gradient_n, keys, HEAD, BLOCK_D)
        dq = tl.dot(tl.trans(k), ds, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=("heads", "queries", "tokens"))
def joint_attention_backward_small(
    Q: tl.tensor, K: tl.tensor, V: tl.tensor, TEXT_K: tl.tensor, TEXT_V: tl.tensor,
    TEXT_LENGTH: tl.tensor, OUT: tl.tensor, GRAD: tl.tensor, LSE: tl.tensor,
    q_b: tl.tensor, q_h: tl.tensor, q_n: tl.tensor,
    k_b: tl.tensor, k_h: tl.tensor, k_n: tl.tensor,
    v_b: tl.tensor, v_h: tl.tensor, v_n: tl.tensor,
    text_k_b: tl.tensor, text_k_h: tl.tensor, text_k_n: tl.tensor,
    text_v_b: tl.tensor, text_v_h: tl.tensor, text_v_n: tl.tensor,
    out_b: tl.tensor, out_h: tl.tensor, out_n: tl.tensor,
    grad_b: tl.tensor, grad_h: tl.tensor, grad_n: tl.tensor,
    heads: tl.tensor, queries: tl.tensor, tokens: tl.tensor,
    DQ: tl.tensor, DK: tl.tensor, DV: tl.tensor, TEXT_DK: tl.tensor, TEXT_DV: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Write every gradient of one head; BLOCK_M holds all of its queries."""
    head = tl.program_id(0).to(tl.int64)
    b, h = head // heads, head % heads
    rows = tl.arange(0, BLOCK_M)
    q = load_rows(Q + b * q_b + h * q_h, rows, q_n, queries, HEAD, BLOCK_D, True)
    out = load_rows(OUT + b * out_b + h * out_h, rows, out_n, queries, HEAD, BLOCK_D, True)
    grad = load_rows(GRAD + b * grad_b + h * grad_h, rows, grad_n, queries, HEAD, BLOCK_D, True)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    # A query that is not there weighs nothing: exp2(0 - inf).
    lse = tl.load(LSE + head * queries + rows, mask=rows < queries, other=float("inf")) * LOG2E
    dq = tl.zeros([BLOCK_D, BLOCK_M], tl.float32)
    if K is not None:
        offset = (b * queries * heads + h) * HEAD
        dq = _source(
            dq, q, grad, lse, delta, K + b * k_b + h * k_h, V + b * v_b + h * v_h,
            DK + offset, DV + offset, k_n, v_n, heads * HEAD, queries, queries,
            SCALE, HEAD, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    if TEXT_K is not None:
        offset = (b * tokens * heads + h) * HEAD
        text_k, text_v = TEXT_K + b * text_k_b + h * text_k_h, TEXT_V + b * text_v_b + h * text_v_h
        dq = _source(
            dq, q, grad, lse, delta, text_k, text_v, TEXT_DK + offset, TEXT_DV + offset,
            text_k_n, text_v_n, heads * HEAD, tokens, visible_tokens(TEXT_LENGTH, b, tokens),
            SCALE, HEAD, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    channels = tl.arange(0, BLOCK_D)
    address = DQ + ((b * queries + rows[None, :]) * heads + h) * HEAD + channels[:, None]
    tl.store(
        address,
        (dq * SCALE).to(DQ.dtype.element_ty),
        mask=(rows[None, :] < queries) & (channels[:, None] < HEAD),
    )
