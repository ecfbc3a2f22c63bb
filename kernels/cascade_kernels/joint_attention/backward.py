"""Triton kernels of joint attention's backward pass: gradients of both sources and the queries.

With the probabilities P recomputed from the saved logarithm `LSE` and D = rowsum(dO * O),
dV = P^T dO, dS = P * (dO V^T - D), dK = dS^T Q, dQ = dS K (Dao et al. 2022, appendix B.4). Every
gradient is summed by one program in a fixed order: no atomics, so the result is reproducible.

The transposes are never taken of an accumulator, which on Hopper gives wrong gradients with
triton 3.4 to 3.7.0 (fla-org/flash-linear-attention#640): dK and dV start from S^T = K Q^T, and
where one program has everything, dQ^T = K^T dS^T.

Shapes: as in the forward pass; gradients are B N H d contiguous.
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
def _dq_tile(
    dq: tl.tensor, q: tl.tensor, grad: tl.tensor, lse: tl.tensor, delta: tl.tensor,
    K: tl.tensor, V: tl.tensor,
    k_n: tl.tensor, v_n: tl.tensor, start: tl.tensor, keys: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    RAGGED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Add what BLOCK_N keys give to dQ, up to the factor 1 / sqrt(d)."""
    rows = start + tl.arange(0, BLOCK_N)
    k = load_rows(K, rows, k_n, keys, HEAD, BLOCK_D, RAGGED)
    v = load_rows(V, rows, v_n, keys, HEAD, BLOCK_D, RAGGED)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * (SCALE * LOG2E)
    weight = tl.exp2(logits - lse[:, None])
    if RAGGED:  # a key that is not there would weigh exp2(-lse), which can be inf
        weight = tl.where(rows[None, :] < keys, weight, 0.0)
    ds = weight * (tl.dot(grad, tl.trans(v), input_precision="ieee") - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit
def _dq_source(
    dq: tl.tensor, q: tl.tensor, grad: tl.tensor, lse: tl.tensor, delta: tl.tensor,
    K: tl.tensor, V: tl.tensor,
    k_n: tl.tensor, v_n: tl.tensor, keys: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Add what the first `keys` keys of one source give to dQ."""
    whole = keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        dq = _dq_tile(
            dq, q, grad, lse, delta, K, V, k_n, v_n, start, keys,
            SCALE, HEAD, BLOCK_D, BLOCK_N, False,
        )  # fmt: skip
    if whole < keys:
        dq = _dq_tile(
            dq, q, grad, lse, delta, K, V, k_n, v_n, whole, keys,
            SCALE, HEAD, BLOCK_D, BLOCK_N, True,
        )  # fmt: skip
    return dq


@triton.jit(do_not_specialize=("heads", "queries", "tokens"))
def joint_attention_backward_q(
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
    DQ: tl.tensor, DELTA: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, ADD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
) -> None:  # fmt: skip
    """Write dQ of BLOCK_M queries, and D, which the gradients of the keys need afterwards.

    Where ADD, what DQ holds already is a part of dQ.
    """
    tiles = tl.cdiv(queries, BLOCK_M)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head // heads, head % heads
    rows = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    out = load_rows(OUT + b * out_b + h * out_h, rows, out_n, queries, HEAD, BLOCK_D, True)
    grad = load_rows(GRAD + b * grad_b + h * grad_h, rows, grad_n, queries, HEAD, BLOCK_D, True)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(DELTA + head * queries + rows, delta, mask=rows < queries)
    q = load_rows(Q + b * q_b + h * q_h, rows, q_n, queries, HEAD, BLOCK_D, True)
    lse = tl.load(LSE + head * queries + rows, mask=rows < queries, other=float("inf")) * LOG2E
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if K is not None:
        image_k, image_v = K + b * k_b + h * k_h, V + b * v_b + h * v_h
        dq = _dq_source(
            dq, q, grad, lse, delta, image_k, image_v, k_n, v_n, queries,
            SCALE, HEAD, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    if TEXT_K is not None:
        text_k, text_v = TEXT_K + b * text_k_b + h * text_k_h, TEXT_V + b * text_v_b + h * text_v_h
        dq = _dq_source(
            dq, q, grad, lse, delta, text_k, text_v, text_k_n, text_v_n,
            visible_tokens(TEXT_LENGTH, b, tokens), SCALE, HEAD, BLOCK_D, BLOCK_T,
        )  # fmt: skip
    dq *= SCALE
    DQ += (b * queries * heads + h) * HEAD
    if ADD:
        dq += load_rows(DQ, rows, heads * HEAD, queries, HEAD, BLOCK_D, True).to(tl.float32)
    store_rows(DQ, dq, rows, heads * HEAD, queries, HEAD, BLOCK_D)


@triton.jit
def _dkv_tile(
    dk: tl.tensor, dv: tl.tensor, k: tl.tensor, v: tl.tensor,
    Q: tl.tensor, GRAD: tl.tensor, LSE: tl.tensor, DELTA: tl.tensor,
    q_n: tl.tensor, grad_n: tl.tensor, start: tl.tensor, queries: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    RAGGED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Add what BLOCK_M queries give to dK, up to the factor 1 / sqrt(d), and to dV."""
    rows = start + tl.arange(0, BLOCK_M)
    q = load_rows(Q, rows, q_n, queries, HEAD, BLOCK_D, RAGGED)
    grad = load_rows(GRAD, rows, grad_n, queries, HEAD, BLOCK_D, RAGGED)
    # A query that is not there weighs nothing: exp2(0 - inf).
    lse = tl.load(LSE + rows, mask=rows < queries, other=float("inf")) * LOG2E
    delta = tl.load(DELTA + rows, mask=rows < queries, other=0.0)
    logits = tl.dot(k, tl.trans(q), input_precision="ieee") * (SCALE * LOG2E)
    weight = tl.exp2(logits - lse[None, :])
    dv = tl.dot(weight.to(grad.dtype), grad, dv, input_precision="ieee")
    ds = weight * (tl.dot(v, tl.trans(grad), input_precision="ieee") - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def _dkv_source(
    Q: tl.tensor, GRAD: tl.tensor, LSE: tl.tensor, DELTA: tl.tensor,
    K: tl.tensor, V: tl.tensor, DK: tl.tensor, DV: tl.tensor,
    q_n: tl.tensor, grad_n: tl.tensor, k_n: tl.tensor, v_n: tl.tensor, gradient_n: tl.tensor,
    tile: tl.tensor, queries: tl.tensor, keys: tl.tensor, visible: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Write dK and dV of BLOCK_N keys of one source; zero for keys beyond the `visible` ones."""
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = load_rows(K, rows, k_n, visible, HEAD, BLOCK_D, True)
    v = load_rows(V, rows, v_n, visible, HEAD, BLOCK_D, True)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # Keys beyond the visible ones have nothing to sum.
    seen = tl.where(tile * BLOCK_N < visible, queries, 0)
    whole = seen // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        dk, dv = _dkv_tile(
            dk, dv, k, v, Q, GRAD, LSE, DELTA, q_n, grad_n, start, queries,
            SCALE, HEAD, BLOCK_D, BLOCK_M, False,
        )  # fmt: skip
    if whole < seen:
        dk, dv = _dkv_tile(
            dk, dv, k, v, Q, GRAD, LSE, DELTA, q_n, grad_n, whole, queries,
            SCALE, HEAD, BLOCK_D, BLOCK_M, True,
        )  # fmt: skip
    # Rows of the transposed logits do not mix: masking the hidden keys once, here, is enough.
    dk = tl.where(rows[:, None] < visible, dk * SCALE, 0.0)
    dv = tl.where(rows[:, None] < visible, dv, 0.0)
    store_rows(DK, dk, rows, gradient_n, keys, HEAD, BLOCK_D)
    store_rows(DV, dv, rows, gradient_n, keys, HEAD, BLOCK_D)


@triton.jit(do_not_specialize=("heads", "queries", "tokens"))
def joint_attention_backward_kv(
    Q: tl.tensor, K: tl.tensor, V: tl.tensor, TEXT_K: tl.tensor, TEXT_V: tl.tensor,
    TEXT_LENGTH: tl.tensor, OUT: tl.tensor, GRAD: tl.tensor, LSE: tl.tensor,
    q_b: tl.tensor, q_h: tl.tensor, q_n: tl.tensor,
    k_b: tl.tensor, k_h: tl.tensor, k_n: tl.tensor,
    v_b: tl.tensor, v_h: tl.tensor, v_n: tl.tensor,
    text_k_b: tl.tensor, text_k_h: tl.tensor, text_k_n: tl.tensor,
    text_v_b: tl.tensor, text_v_h: tl.tensor, text_v_n: tl.tensor,
    out_b: tl.tensor, out_h: tl.tensor, out_n: tl.tensor,
    grad_b: tl.tensor, grad_h: tl.tensor, grad_n: tl.tensor,
    heads: tl.tensor, queries: tl.tensor, tokens: tl.tensor, DELTA: tl.tensor,
    DK: tl.tensor, DV: tl.tensor, TEXT_DK: tl.tensor, TEXT_DV: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Write dK and dV of BLOCK_N keys of the image or, in the programs after its, of the text."""
    of_image = 0
    if K is not None:
        of_image = tl.cdiv(queries, BLOCK_N)
    tiles = of_image
    if TEXT_K is not None:
        tiles += tl.cdiv(tokens, BLOCK_N)
    head, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    b, h = head // heads, head % heads
    Q += b * q_b + h * q_h
    GRAD += b * grad_b + h * grad_h
    LSE += head * queries
    DELTA += head * queries
    if K is not None:  # noqa: SIM102 - Triton evaluates both sides of an `and`
        if tile < of_image:
            offset = (b * queries * heads + h) * HEAD
            _dkv_source(
                Q, GRAD, LSE, DELTA, K + b * k_b + h * k_h, V + b * v_b + h * v_h,
                DK + offset, DV + offset, q_n, grad_n, k_n, v_n, heads * HEAD,
                tile, queries, queries, queries, SCALE, HEAD, BLOCK_D, BLOCK_M, BLOCK_N,
            )  # fmt: skip
    if TEXT_K is not None:  # noqa: SIM102
        if tile >= of_image:
            offset = (b * tokens * heads + h) * HEAD
            _dkv_source(
                Q, GRAD, LSE, DELTA, TEXT_K + b * text_k_b + h * text_k_h,
                TEXT_V + b * text_v_b + h * text_v_h, TEXT_DK + offset, TEXT_DV + offset,
                q_n, grad_n, text_k_n, text_v_n, heads * HEAD, tile - of_image, queries, tokens,
                visible_tokens(TEXT_LENGTH, b, tokens), SCALE, HEAD, BLOCK_D, BLOCK_M, BLOCK_N,
            )  # fmt: skip
