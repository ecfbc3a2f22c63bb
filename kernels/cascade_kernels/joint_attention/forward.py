"""Triton forward pass of joint attention: its kernel, its launch, and what the backward shares.

One program owns BLOCK_M queries of one head and walks over the image's keys, then over the text's
up to the image's own text length, with the softmax taken online (Milakov & Gimelshein 2018; Dao
2023, algorithm 1). Only the last tile of a source can be ragged, so only that one is masked. Logits
are kept in base 2 meanwhile: `exp2` is what the hardware has.

Shapes: `Q K V TEXT_K TEXT_V` B H N d of any strides with `d` contiguous (`x_b x_h x_n`), absent
sources None; `OUT` B N H d and `LSE` B H N contiguous; `rows` positions of one tile. What has the
shape B H N d and is made here is laid out as B N H d: projections before and after read and write
it as B N (H d) without a copy.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from cascade_kernels.dispatch import launch, require
from cascade_kernels.joint_attention.inputs import Inputs, check, sizes
from cascade_kernels.launching import Plans, Program, on_its_device

LOG2E = tl.constexpr(1.4426950408889634)  # within a kernel the logits are powers of 2
_LN2 = tl.constexpr(0.6931471805599453)
_LEAST_BLOCK = 16  # of `tl.dot`


@triton.jit
def load_rows(
    pointer: tl.tensor, rows: tl.tensor, stride: tl.tensor, limit: tl.tensor,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, RAGGED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load rows x BLOCK_D; channels beyond HEAD and, where RAGGED, rows beyond `limit` are zero."""
    channels = tl.arange(0, BLOCK_D)
    address = pointer + rows[:, None] * stride + channels[None, :]
    if RAGGED:
        return tl.load(
            address, mask=(rows[:, None] < limit) & (channels[None, :] < HEAD), other=0.0
        )
    if HEAD < BLOCK_D:
        return tl.load(address, mask=channels[None, :] < HEAD, other=0.0)
    return tl.load(address)


@triton.jit
def store_rows(
    pointer: tl.tensor, value: tl.tensor, rows: tl.tensor, stride: tl.tensor, limit: tl.tensor,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Store rows x BLOCK_D in the type of `pointer`, leaving out what lies beyond the limits."""
    channels = tl.arange(0, BLOCK_D)
    tl.store(
        pointer + rows[:, None] * stride + channels[None, :],
        value.to(pointer.dtype.element_ty),
        mask=(rows[:, None] < limit) & (channels[None, :] < HEAD),
    )


@triton.jit
def visible_tokens(TEXT_LENGTH: tl.tensor, image: tl.tensor, tokens: tl.tensor) -> tl.tensor:
    """Return how many text tokens `image` of the batch sees: all of them without lengths."""
    visible = tokens
    # No early return: triton 3.6 compiles what follows one, even where the condition is static.
    if TEXT_LENGTH is not None:
        length = tl.load(TEXT_LENGTH + image).to(tl.int32)
        visible = tl.minimum(tl.maximum(length, 0), tokens)
    return visible


@triton.jit
def _attend_tile(
    acc: tl.tensor, total: tl.tensor, peak: tl.tensor, q: tl.tensor,
    K: tl.tensor, V: tl.tensor,
    k_n: tl.tensor, v_n: tl.tensor, start: tl.tensor, keys: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    RAGGED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Add BLOCK_N keys to the running weighted sum, the sum of weights and the greatest logit."""
    rows = start + tl.arange(0, BLOCK_N)
    k = load_rows(K, rows, k_n, keys, HEAD, BLOCK_D, RAGGED)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * (SCALE * LOG2E)
    if RAGGED:
        logits = tl.where(rows[None, :] < keys, logits, float("-inf"))
    # Every tile has a visible key, so the new maximum is finite and no `inf - inf` can arise.
    peak_new = tl.maximum(peak, tl.max(logits, 1))
    weight = tl.exp2(logits - peak_new[:, None])
    shrink = tl.exp2(peak - peak_new)
    v = load_rows(V, rows, v_n, keys, HEAD, BLOCK_D, RAGGED)
    acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, total * shrink + tl.sum(weight, 1), peak_new


@triton.jit
def _attend_source(
    acc: tl.tensor, total: tl.tensor, peak: tl.tensor, q: tl.tensor,
    K: tl.tensor, V: tl.tensor,
    k_n: tl.tensor, v_n: tl.tensor, keys: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Add the first `keys` keys of one source."""
    whole = keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        acc, total, peak = _attend_tile(
            acc, total, peak, q, K, V, k_n, v_n, start, keys, SCALE, HEAD, BLOCK_D, BLOCK_N, False
        )
    if whole < keys:
        acc, total, peak = _attend_tile(
            acc, total, peak, q, K, V, k_n, v_n, whole, keys, SCALE, HEAD, BLOCK_D, BLOCK_N, True
        )
    return acc, total, peak


# Specialising the counts would gain nothing, compile every tile anew for 16 of them, and the
# assembler of triton 3.6 crashes where one of them is the constant 1.
@triton.jit(do_not_specialize=("heads", "queries", "tokens"))
def joint_attention_forward(
    Q: tl.tensor, K: tl.tensor, V: tl.tensor, TEXT_K: tl.tensor, TEXT_V: tl.tensor,
    TEXT_LENGTH: tl.tensor,
    q_b: tl.tensor, q_h: tl.tensor, q_n: tl.tensor,
    k_b: tl.tensor, k_h: tl.tensor, k_n: tl.tensor,
    v_b: tl.tensor, v_h: tl.tensor, v_n: tl.tensor,
    text_k_b: tl.tensor, text_k_h: tl.tensor, text_k_n: tl.tensor,
    text_v_b: tl.tensor, text_v_h: tl.tensor, text_v_n: tl.tensor,
    heads: tl.tensor, queries: tl.tensor, tokens: tl.tensor,
    OUT: tl.tensor, LSE: tl.tensor,
    SCALE: tl.constexpr, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr,
) -> None:  # fmt: skip
    """Write the output and the log of the softmax's denominator of BLOCK_M queries.

    SCALE is 1 / sqrt(d). A row that sees no key gets 0, and -inf as its logarithm.
    """
    # The tiles of one head run side by side: they read the same keys, which stay in the L2 cache.
    tiles = tl.cdiv(queries, BLOCK_M)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head // heads, head % heads
    rows = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    q = load_rows(Q + b * q_b + h * q_h, rows, q_n, queries, HEAD, BLOCK_D, True)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if K is not None:
        image_k, image_v = K + b * k_b + h * k_h, V + b * v_b + h * v_h
        acc, total, peak = _attend_source(
            acc, total, peak, q, image_k, image_v, k_n, v_n, queries, SCALE, HEAD, BLOCK_D, BLOCK_N
        )
    if TEXT_K is not None:
        text_k, text_v = TEXT_K + b * text_k_b + h * text_k_h, TEXT_V + b * text_v_b + h * text_v_h
        visible = visible_tokens(TEXT_LENGTH, b, tokens)
        acc, total, peak = _attend_source(
            acc, total, peak, q, text_k, text_v, text_k_n, text_v_n, visible,
            SCALE, HEAD, BLOCK_D, BLOCK_T,
        )  # fmt: skip
    total = tl.where(total > 0, total, 1.0)
    out = acc / total[:, None]
    store_rows(
        OUT + (b * queries * heads + h) * HEAD, out, rows, heads * HEAD, queries, HEAD, BLOCK_D
    )
    tl.store(LSE + head * queries + rows, (peak + tl.log2(total)) * _LN2, mask=rows < queries)


class _Plan:
    """One launch of the forward kernel."""

    def __init__(self, inputs: Inputs) -> None:
        require("joint_attention", inputs.q)
        check(inputs)
        self.packed = all(x is None or x.stride(3) == 1 for x in inputs[:5])
        q, shape = inputs.q, sizes(inputs)
        batch, heads, queries, head = q.shape
        chosen = launch("joint_attention_forward", q.device, **shape)
        grid = (-(-queries // chosen.blocks["BLOCK_M"]) * batch * heads,)
        self.program = Program(joint_attention_forward, grid, constants(head), chosen)
        self.integers = (*strides(*inputs[:5]), heads, queries, shape["tokens"])
        self.rows = batch, heads, queries


_PLANS = Plans(_Plan)


@on_its_device
def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return the output, B H N d, and the log of the softmax's denominator, B H N.

    Nothing waits for the device or allocates by the data, so a call can be captured in a graph.

    Raises:
        ValueError: the inputs do not fit together.
        RuntimeError: there is no launch configuration for their shape.
    """
    plan = _PLANS.of(inputs)
    if not plan.packed:
        return forward(packed(inputs))
    q = inputs.q
    out, lse = empty_rows(q), q.new_empty(plan.rows, dtype=torch.float32)
    plan.program(*inputs, *plan.integers, out, lse)
    return out, lse


def packed(inputs: Inputs) -> Inputs:
    """Lay the channels of every head side by side; copies only what is not laid out so."""
    q, *sources, text_length = inputs
    k, v, text_k, text_v = (None if x is None else packed_rows(x) for x in sources)
    return Inputs(packed_rows(q), k, v, text_k, text_v, text_length)


def packed_rows(x: Tensor) -> Tensor:
    """Return B H N d with contiguous channels, any strides between rows."""
    return x if x.stride(3) == 1 else x.contiguous()


def empty_rows(x: Tensor) -> Tensor:
    """Return an empty tensor like x, B H N d, that is laid out as B N H d."""
    shape = x.shape
    _, heads, rows, head = shape
    return x.new_empty_strided(shape, (rows * heads * head, head, heads * head, 1))


def strides(*tensors: Tensor | None) -> tuple[int, ...]:
    """Return the strides of B, H and N of each; zeros for an absent one, which no kernel reads."""
    return tuple(step for x in tensors for step in ((0, 0, 0) if x is None else x.stride()[:3]))


def constants(head: int) -> dict[str, Any]:
    """Return the constexpr arguments of a kernel beside its blocks' sizes."""
    block = max(_LEAST_BLOCK, triton.next_power_of_2(head))
    return {"SCALE": head**-0.5, "HEAD": head, "BLOCK_D": block}
