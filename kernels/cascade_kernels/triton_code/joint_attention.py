"""Launchers of the joint attention kernels, and how the kernels describe themselves.

Nothing here waits for the device or allocates by the data, so a call can be captured in a graph.
Outputs and gradients are B H N d, laid out as B N H d: projections before and after read and write
them as B N (H d) without a copy.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from cascade_kernels.dispatch import Launch, Table, launch, table
from cascade_kernels.triton_code.joint_attention_backward import (
    joint_attention_backward_kv,
    joint_attention_backward_q,
)
from cascade_kernels.triton_code.joint_attention_backward_small import (
    joint_attention_backward_small,
)
from cascade_kernels.triton_code.joint_attention_forward import joint_attention_forward
from cascade_kernels.variant import Variant

_LEAST_BLOCK = 16  # of `tl.dot`


def forward(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the output, B H N d, and the base-2 log of the softmax's denominator, B H N."""
    q = _packed(q)
    k, v, text_k, text_v = (None if x is None else _packed(x) for x in (k, v, text_k, text_v))
    sources = (q, k, v, text_k, text_v)
    shape = _shape(q, text_k)
    out = _rows_like(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    chosen = launch("joint_attention_forward", q.device, **shape)
    grid = (triton.cdiv(q.shape[2], chosen.blocks["BLOCK_M"]) * q.shape[0] * q.shape[1],)
    with torch.cuda.device_of(q):
        joint_attention_forward[grid](
            *sources, text_length, *_strides(*sources), q.shape[1], q.shape[2], shape["tokens"],
            out, lse, **_constants(q.shape[3], chosen),
        )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> list[Tensor]:
    """Return the gradients of q, k, v, text_k and text_v, without those of absent sources."""
    q, out, grad = _packed(q), _packed(out), _packed(grad)
    k, v, text_k, text_v = (None if x is None else _packed(x) for x in (k, v, text_k, text_v))
    sources = (q, k, v, text_k, text_v)
    gradients = [None if x is None else _rows_like(x) for x in sources]
    shape = _shape(q, text_k)
    batch, heads, queries, head = q.shape
    arguments = (
        *sources, text_length, out, grad, lse, *_strides(*sources, out, grad),
        heads, queries, shape["tokens"],
    )  # fmt: skip
    # One launch for everything, where the image is small enough.
    small = table(q.device).find("joint_attention_backward_small", shape)
    with torch.cuda.device_of(q):
        if small is not None:
            joint_attention_backward_small[(batch * heads,)](
                *arguments, *gradients, **_constants(head, small)
            )
            return [x for x in gradients if x is not None]
        delta = torch.empty_like(lse)
        chosen = launch("joint_attention_backward_q", q.device, **shape)
        grid = (triton.cdiv(queries, chosen.blocks["BLOCK_M"]) * batch * heads,)
        joint_attention_backward_q[grid](
            *arguments, gradients[0], delta, **_constants(head, chosen)
        )
        _, dk, dv, text_dk, text_dv = gradients
        _backward_kv(q, k, v, None, grad, lse, delta, dk, dv, shape)
        _backward_kv(q, text_k, text_v, text_length, grad, lse, delta, text_dk, text_dv, shape)
    return [x for x in gradients if x is not None]


def _backward_kv(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    length: Tensor | None,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    dk: Tensor | None,
    dv: Tensor | None,
    shape: Mapping[str, int],
) -> None:
    """Fill the gradients of one source's keys and values, if there is one."""
    if k is None:
        return
    batch, heads, keys, head = k.shape
    chosen = launch("joint_attention_backward_kv", q.device, **shape)
    grid = (triton.cdiv(keys, chosen.blocks["BLOCK_N"]) * batch * heads,)
    joint_attention_backward_kv[grid](
        q, k, v, length, grad, lse, delta, *_strides(q, k, v, grad),
        heads, q.shape[2], keys, dk, dv, **_constants(head, chosen),
    )  # fmt: skip


def variants(table: Table) -> Iterator[Variant]:
    """Describe every row of the kernels of this operation: both sources, lengths, whole heads.

    Rows of two-byte types come once more with a head that leaves a part of its block unused.
    """
    for kernel in (
        joint_attention_forward,
        joint_attention_backward_q,
        joint_attention_backward_kv,
        joint_attention_backward_small,
    ):
        name = kernel.fn.__name__
        for row in table.launches.get(name, ()):
            width, element = row.limits["head"], row.limits["bytes"]
            for head in (width, width * 5 // 8) if element == 2 else (width,):
                yield _variant(name, kernel, row.launch, head, "bf16" if element == 2 else "fp32")


def _variant(name: str, kernel: Any, chosen: Launch, head: int, element: str) -> Variant:
    constants = _constants(head, chosen)
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    special = {"LSE": "*fp32", "DELTA": "*fp32", "TEXT_LENGTH": "*i32", "LENGTH": "*i32"}
    arguments = {
        argument: special.get(argument, f"*{element}") if argument.isupper() else "i32"
        for argument in inspect.signature(kernel.fn).parameters
        if argument not in constants
    }
    blocks = "".join(f"{block[-1]}{size}" for block, size in chosen.blocks.items())
    return Variant(
        name=f"{name}/{element}/d{head}/{blocks}/w{warps}s{stages}",
        kernel=kernel,
        arguments=arguments,
        constants=constants,
        multiples=frozenset(x for x in arguments if x.endswith(("_b", "_h", "_n"))),
        num_warps=warps,
        num_stages=stages,
        asynchronous=stages > 1,
    )


def _constants(head: int, chosen: Launch) -> dict[str, Any]:
    """The constexpr arguments of a kernel and its launch options."""
    return {
        "SCALE": head**-0.5,
        "HEAD": head,
        "BLOCK_D": max(_LEAST_BLOCK, triton.next_power_of_2(head)),
        **chosen.blocks,
        "num_warps": chosen.num_warps,
        "num_stages": chosen.num_stages,
    }


def _shape(q: Tensor, text_k: Tensor | None) -> dict[str, int]:
    """What the limits of a launch table may bound."""
    return {
        "head": q.shape[3],
        "queries": q.shape[2],
        "tokens": 0 if text_k is None else text_k.shape[2],
        "bytes": q.element_size(),
    }


def _packed(x: Tensor) -> Tensor:
    """The same tensor with the channels of a head side by side, copied only if they are not."""
    return x if x.stride(3) == 1 else x.contiguous()


def _rows_like(x: Tensor) -> Tensor:
    """An empty tensor B H N d that is laid out as B N H d."""
    batch, heads, rows, head = x.shape
    return x.new_empty(batch, rows, heads, head).transpose(1, 2)


def _strides(*tensors: Tensor | None) -> list[int]:
    """The strides of B, H and N of each; zeros for an absent source, which no kernel reads."""
    return [step for x in tensors for step in ((0, 0, 0) if x is None else x.stride()[:3])]
