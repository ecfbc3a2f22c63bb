"""Attention of image tokens over two sources of keys, the text and the image, in one softmax.

Imagen concatenates the text to the keys and values of every self-attention layer (Saharia et al.
2022, appendix D.3.1). Here the two sources stay apart, so that the fused kernel need not copy them
into one tensor, and reads of the text only the tokens that are there.

Shapes: `B` batch, `H` heads, `N` image tokens, `L` text tokens, `d` channels of one head.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_kernels.dispatch import fused
from cascade_kernels.names import Backend


def joint_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return softmax(q [text_k; k]^T / sqrt(d)) [text_v; v].

    Args:
        q: queries of the image, B H N d. Every tensor may have any strides; the kernel copies one
            only if the channels of a head do not lie side by side.
        k: keys of the image, B H N d; None leaves the image out (cross-attention).
        v: values of the image, given together with `k`.
        text_k: keys of the text, B H L d; None leaves the text out (self-attention).
        text_v: values of the text, given together with `text_k`.
        text_length: B, int32 or int64: image b sees the first text_length[b] text tokens. None:
            every image sees all of them.
        backend: which path to take, see `cascade_kernels.dispatch.fused`.

    Returns:
        B H N d, laid out as B N H d: `transpose(1, 2).flatten(2)` is a view. A row with nothing to
        attend to (no image, text of length 0) is zero.

    Raises:
        ValueError: no keys at all, keys without their values, shapes that do not fit together, or
            a backend that cannot run here.
        RuntimeError: the kernel was asked for by name and has no launch configuration for the
            shape: heads wider than 128.
    """
    _check(q, k, v, text_k, text_v, text_length)
    sources = [x for x in (q, k, v, text_k, text_v) if x is not None]
    training = torch.is_grad_enabled() and any(x.requires_grad for x in sources)
    tokens = 0 if text_k is None else text_k.shape[2]
    head, queries, size = q.shape[3], q.shape[2], q.element_size()
    if not fused(
        "joint_attention", q, backend, training,
        head=head, queries=queries, tokens=tokens, bytes=size,
    ):  # fmt: skip
        return _reference(q, k, v, text_k, text_v, text_length)
    out: Tensor = _forward(q, k, v, text_k, text_v, text_length)[0]
    return out


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Return the operators of this file and what replaces each in an exported graph."""
    return {
        torch.ops.cascade.joint_attention.default: _forward_decomposition,
        torch.ops.cascade.joint_attention_backward.default: _backward_decomposition,
    }


def _check(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
) -> None:
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


def _reference(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
) -> Tensor:
    """The same in plain PyTorch, with both sources copied into one tensor.

    Second derivatives exist where PyTorch's own attention has them: under `SDPBackend.MATH`.
    """
    key, value, seen = _joined(q, k, v, text_k, text_v, text_length)
    out = F.scaled_dot_product_attention(q, key, value, attn_mask=seen)
    return _rows_first(out)


def _joined(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All keys and values, text first, and which keys are visible, B 1 1 K; None: all are."""
    keys = [x for x in (text_k, k) if x is not None]
    values = [x for x in (text_v, v) if x is not None]
    # A single source is passed as it is: `cat` of one tensor would copy it.
    key = keys[0] if len(keys) == 1 else torch.cat(keys, dim=2)
    value = values[0] if len(values) == 1 else torch.cat(values, dim=2)
    if text_k is None or text_length is None:
        return key, value, None
    place = torch.arange(key.shape[2], device=q.device)
    seen = (place < text_length[:, None]) | (place >= text_k.shape[2])
    return key, value, seen[:, None, None, :]


def _rows_first(x: Tensor) -> Tensor:
    """The same tensor B H N d, laid out as B N H d."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@torch.library.custom_op("cascade::joint_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output, and the base-2 logarithm of the softmax's denominator, B H N in fp32."""
    from cascade_kernels.triton_code.joint_attention import forward

    return forward(q, k, v, text_k, text_v, text_length)


@torch.library.custom_op("cascade::joint_attention_backward", mutates_args=())
def _backward(
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
    """The gradients of q, k, v, text_k and text_v, without those of absent sources."""
    from cascade_kernels.triton_code.joint_attention import backward

    return backward(grad, q, k, v, text_k, text_v, text_length, out, lse)


@_forward.register_fake
def _forward_fake(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _rows_first(torch.empty_like(q)), q.new_empty(q.shape[:3], dtype=torch.float32)


@_backward.register_fake
def _backward_fake(
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
    inputs = (q, k, v, text_k, text_v)
    return [_rows_first(torch.empty_like(x)) for x in inputs if x is not None]


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, out, lse = ctx.saved_tensors
    gradients = iter(_backward(grad, *inputs, out, lse))
    return (*(None if x is None else next(gradients) for x in inputs[:5]), None)


_forward.register_autograd(_differentiate, setup_context=_save)


def _autocast(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run in the type that autocast asks for; `register_autocast` knows only a fixed one."""
    device = q.device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        sources = (None if x is None else x.to(dtype) for x in (k, v, text_k, text_v))
        result: tuple[Tensor, Tensor] = _forward(q.to(dtype), *sources, text_length)
        return result


_LIBRARY = torch.library.Library("cascade", "FRAGMENT")
for _key in ("AutocastCUDA", "AutocastCPU"):
    _LIBRARY.impl("joint_attention", _autocast, _key)


def _forward_decomposition(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
) -> tuple[Tensor, Tensor]:
    key, _, seen = _joined(q, k, v, text_k, text_v, text_length)
    lse = _logits(q, key, seen).logsumexp(dim=-1) / math.log(2)
    return _reference(q, k, v, text_k, text_v, text_length), lse


def _backward_decomposition(
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
    key, value, seen = _joined(q, k, v, text_k, text_v, text_length)
    wide = grad.float()
    # A row that sees nothing has the logarithm -inf, and weights exp(-inf + inf) to be 0.
    weight = (_logits(q, key, seen) - lse[..., None] * math.log(2)).exp().nan_to_num(nan=0.0)
    delta = (out.float() * wide).sum(dim=-1, keepdim=True)
    ds = weight * (wide @ value.float().mT - delta) / math.sqrt(q.shape[3])
    dkey, dvalue = ds.mT @ q.float(), weight.mT @ wide
    tokens = 0 if text_k is None else text_k.shape[2]
    gradients = [ds @ key.float()]
    if k is not None:
        gradients += [dkey[:, :, tokens:], dvalue[:, :, tokens:]]
    if text_k is not None:
        gradients += [dkey[:, :, :tokens], dvalue[:, :, :tokens]]
    return [_rows_first(x.to(q.dtype)) for x in gradients]


def _logits(q: Tensor, key: Tensor, seen: Tensor | None) -> Tensor:
    """Return q key^T / sqrt(d) in fp32, -inf where a key is hidden."""
    logits = q.float() @ key.float().mT / math.sqrt(q.shape[3])
    return logits if seen is None else logits.masked_fill(~seen, -math.inf)
