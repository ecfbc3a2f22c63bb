"""The tensors of one call of joint attention.

Shapes: `B` batch, `H` heads, `N` image tokens, `L` text tokens, `d` channels of one head.
"""

from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor

from cascade_kernels.dispatch import route
from cascade_kernels.names import BackwardPath

_VENDORS = tuple(path for path in get_args(BackwardPath) if path not in ("auto", "own"))
_MOST_CHANNELS = 128  # of a head, for which both of PyTorch's backward passes are made


class Inputs(NamedTuple):
    """Queries, and the keys and values of both sources; None for an absent source."""

    q: Tensor  # B H N d
    k: Tensor | None  # B H N d
    v: Tensor | None
    text_k: Tensor | None  # B H L d
    text_v: Tensor | None
    text_length: Tensor | None  # B


class Call(NamedTuple):
    """What a backward pass is given: the gradient of the output, the inputs, what was saved."""

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    text_k: Tensor | None
    text_v: Tensor | None
    text_length: Tensor | None
    out: Tensor  # B H N d
    grad: Tensor  # B H N d
    lse: Tensor  # B H N

    @property
    def inputs(self) -> Inputs:
        """Those of the forward pass."""
        return Inputs(*self[:6])


def check(inputs: Inputs) -> None:
    """Check that keys and values fit together.

    Raises:
        ValueError: they do not.
    """
    q, k, v, text_k, text_v, text_length = inputs
    if (k is None) != (v is None) or (text_k is None) != (text_v is None):
        raise ValueError("keys and values must be given together")
    if k is None and text_k is None:
        raise ValueError("attention needs the image's keys, the text's, or both")
    for name, x, rows in (
        ("k", k, q),
        ("v", v, q),
        ("text_k", text_k, text_k),
        ("text_v", text_v, text_k),
    ):
        if x is None or rows is None:
            continue
        expected = (q.shape[0], q.shape[1], rows.shape[2], q.shape[3])
        if tuple(x.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}")
    if text_length is not None and text_length.shape != q.shape[:1]:
        raise ValueError(
            f"text_length has shape {tuple(text_length.shape)}; expected one per image"
        )


def sizes(inputs: Inputs) -> dict[str, int]:
    """Return what rows and routes of a launch table may bound."""
    q, text_k = inputs.q, inputs.text_k
    return {
        "head": q.shape[3],
        "queries": q.shape[2],
        "tokens": 0 if text_k is None else text_k.shape[2],
        "bytes": q.element_size(),
    }


def settled(path: BackwardPath, inputs: Inputs) -> BackwardPath:
    """Return who computes the image's part of the gradients, "auto" settled by what was measured.

    Raises:
        ValueError: the one that is asked for by name cannot.
    """
    if path == "auto":
        q = inputs.q
        found = route("joint_attention_backward", q.device, True, sizes(inputs))
        # PyTorch's backward passes add in an order that differs from call to call.
        fixed = torch.are_deterministic_algorithms_enabled()
        own = found is None or fixed or _unfit(found, inputs)
        return "own" if own else cast(BackwardPath, found)
    reason = "" if path == "own" else _unfit(path, inputs)
    if reason:
        raise ValueError(f"joint_attention cannot have its gradients from {path!r}: {reason}.")
    return path


def _unfit(path: str, inputs: Inputs) -> str:
    """Return why PyTorch's backward pass cannot compute the image's part; empty where it can."""
    q = inputs.q
    if path not in _VENDORS:
        return f"known are auto, own, {', '.join(_VENDORS)}"
    if inputs.k is None:
        return "the image is no source of keys"
    if q.device.type == "cpu":
        return "" if path == "flash" else f"there is no {path} on a CPU"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes no {str(q.dtype).removeprefix('torch.')}"
    if q.shape[3] % 8 or q.shape[3] > _MOST_CHANNELS:
        return f"it takes no heads of {q.shape[3]} channels"
    return ""


def rows_first(x: Tensor) -> Tensor:
    """Lay B H N d out as B N H d."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
