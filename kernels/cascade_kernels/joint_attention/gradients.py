"""Gradients of joint attention: which kernels compute them, and their launches.

An attention's backward pass takes its output and the logarithms of its denominators as given. With
those of the joint softmax, a backward pass over the image's keys alone returns exactly their share:
dK and dV, and the part of dQ that goes through them. So the image's part can be PyTorch's, which is
the faster where the image is large, over keys that were never concatenated and under no mask; the
few keys of the text stay with this project's kernels, which add their part to dQ.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from cascade_kernels.dispatch import launch, table
from cascade_kernels.joint_attention.backward import (
    joint_attention_backward_kv,
    joint_attention_backward_q,
)
from cascade_kernels.joint_attention.backward_small import joint_attention_backward_small
from cascade_kernels.joint_attention.forward import (
    constants,
    empty_rows,
    packed,
    packed_rows,
    strides,
)
from cascade_kernels.joint_attention.inputs import Call, rows_first, sizes
from cascade_kernels.launching import Plans, Program, on_its_device
from cascade_kernels.names import BackwardPath

_aten = torch.ops.aten


class _Plan:
    """Launches of the kernels: one for a small image, else one for dQ and one for the keys."""

    def __init__(self, call: Call, add: bool = False) -> None:
        tensors = (*call[:5], *call[6:8])
        self.packed = all(x is None or x.stride(3) == 1 for x in tensors)
        shape, device = sizes(call.inputs), call.q.device
        batch, heads, queries, head = call.q.shape
        self.integers = (*strides(*tensors), heads, queries, shape["tokens"])
        small = None if add else table(device).find("joint_attention_backward_small", shape)
        self.small: Program | None = None
        fixed = {**constants(head), "ADD": add}
        if small is not None:
            self.small = Program(joint_attention_backward_small, (batch * heads,), fixed, small)
            return
        chosen = launch("joint_attention_backward_q", device, **shape)
        grid = (-(-queries // chosen.blocks["BLOCK_M"]) * batch * heads,)
        self.dq = Program(joint_attention_backward_q, grid, fixed, chosen)
        chosen = launch("joint_attention_backward_kv", device, **shape)
        keys = (x.shape[2] for x in (call.k, call.text_k) if x is not None)
        tiles = sum(-(-number // chosen.blocks["BLOCK_N"]) for number in keys)
        self.dkv = Program(joint_attention_backward_kv, (tiles * batch * heads,), fixed, chosen)


_PLANS, _ADDING = Plans(_Plan), Plans(partial(_Plan, add=True))


@on_its_device
def gradients(call: Call, path: BackwardPath) -> list[Tensor]:
    """Return the gradients of q, k, v, text_k and text_v, without those of absent sources.

    Args:
        path: who computes the image's part; "auto" is settled before.
    """
    return _own(call) if path == "own" else _joined(_packed(call), _IMAGE[path])


def _own(call: Call) -> list[Tensor]:
    """Compute all of it by this project's kernels."""
    plan = _PLANS.of(call)
    if not plan.packed:
        return _own(_packed(call))
    found = [None if x is None else empty_rows(x) for x in call[:5]]
    _launch(plan, call, found)
    return [x for x in found if x is not None]


def _joined(call: Call, image: Callable[[Call], tuple[Tensor, ...]]) -> list[Tensor]:
    """Compute the image's part by another's kernels, and add the text's."""
    dq, *image_part = (rows_first(x) for x in image(call))
    if call.text_k is None or call.text_v is None:
        return [dq, *image_part]
    text = call._replace(k=None, v=None)
    text_part = [empty_rows(call.text_k), empty_rows(call.text_v)]
    _launch(_ADDING.of(text), text, [dq, None, None, *text_part])
    return [dq, *image_part, *text_part]


def _launch(plan: _Plan, call: Call, found: Sequence[Tensor | None]) -> None:
    """Write the gradients of q, k, v, text_k and text_v."""
    if plan.small is not None:
        plan.small(*call, *plan.integers, *found)
        return
    delta = torch.empty_like(call.lse)
    plan.dq(*call, *plan.integers, found[0], delta)
    plan.dkv(*call, *plan.integers, delta, *found[1:])


def _packed(call: Call) -> Call:
    inputs = packed(call.inputs)
    return Call(*inputs, packed_rows(call.out), packed_rows(call.grad), call.lse)


def _cudnn(call: Call) -> tuple[Tensor, ...]:
    """Call cuDNN's backward pass over the image's keys."""
    queries, unused = call.q.shape[2], call.lse.new_empty((), dtype=torch.int64)
    found: tuple[Tensor, ...] = _aten._scaled_dot_product_cudnn_attention_backward(
        call.grad, call.q, call.k, call.v, call.out, call.lse[..., None],
        unused, unused, None, None, None, queries, queries, 0.0, False,
    )  # fmt: skip
    return found


def _flash(call: Call) -> tuple[Tensor, ...]:
    """Call FlashAttention's backward pass over the image's keys; a CPU has one of the name."""
    given = (call.grad, call.q, call.k, call.v, call.out, call.lse)
    found: tuple[Tensor, ...]
    if call.q.device.type == "cpu":
        found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, 0.0, False)
        return found
    queries, unused = call.q.shape[2], call.lse.new_empty(2, dtype=torch.uint64)
    found = _aten._scaled_dot_product_flash_attention_backward(
        *given, None, None, queries, queries, 0.0, False, unused, unused
    )
    return found


_IMAGE: dict[str, Callable[[Call], tuple[Tensor, ...]]] = {"cudnn": _cudnn, "flash": _flash}
