"""Joint attention: the public call, its reference in PyTorch, and its registration.

Imagen concatenates the text to the keys and values of every self-attention layer (Saharia et al.
2022, appendix D.3.1). Here the two sources stay apart, so that the fused kernel need not copy them
into one tensor, and reads of the text only the tokens that are there.

Shapes: `B` batch, `H` heads, `N` image tokens, `L` text tokens, `K` keys of both sources, `d`
channels of one head.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_kernels.dispatch import fused
from cascade_kernels.joint_attention.inputs import Inputs, check, sizes
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
    inputs = Inputs(q, k, v, text_k, text_v, text_length)
    check(inputs)
    training = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if not fused("joint_attention", q, backend, training, **sizes(inputs)):
        return _reference(inputs)
    out: Tensor = _forward(*inputs)[0]
    return out


def _reference(inputs: Inputs) -> Tensor:
    """Concatenate both sources and attend.

    Second derivatives exist where PyTorch's own attention has them: under `SDPBackend.MATH`.
    """
    key, value, visible = _concatenated(inputs)
    return _rows_first(F.scaled_dot_product_attention(inputs.q, key, value, attn_mask=visible))


def _concatenated(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return keys and values, text first, and the mask of visible keys, B 1 1 K; None: all are."""
    q, k, v, text_k, text_v, text_length = inputs
    keys = [x for x in (text_k, k) if x is not None]
    values = [x for x in (text_v, v) if x is not None]
    # A single source is passed as it is: `cat` of one tensor would copy it.
    key = keys[0] if len(keys) == 1 else torch.cat(keys, dim=2)
    value = values[0] if len(values) == 1 else torch.cat(values, dim=2)
    if text_k is None or text_length is None:
        return key, value, None
    position = torch.arange(key.shape[2], device=q.device)
    visible = (position < text_length[:, None]) | (position >= text_k.shape[2])
    return key, value, visible[:, None, None, :]


def _rows_first(x: Tensor) -> Tensor:
    """Lay B H N d out as B N H d."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


_INPUTS = "Tensor q, Tensor? k, Tensor? v, Tensor? text_k, Tensor? text_v, Tensor? text_length"


@torch.library.custom_op(
    "cascade::joint_attention", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor)"
)
def _forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Return the output, and the base-2 log of the softmax's denominator, B H N in fp32."""
    from cascade_kernels.joint_attention.forward import forward

    return forward(Inputs(*inputs))


@torch.library.custom_op(
    "cascade::joint_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse) -> Tensor[]",
)
def _backward(grad: Tensor, *saved: Any) -> list[Tensor]:
    """Return the gradients of q, k, v, text_k and text_v, without those of absent sources."""
    from cascade_kernels.joint_attention.backward import backward

    *inputs, out, lse = saved
    return backward(grad, Inputs(*inputs), out, lse)


@_forward.register_fake
def _(q: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    return _rows_first(torch.empty_like(q)), q.new_empty(q.shape[:3], dtype=torch.float32)


@_backward.register_fake
def _(_: Tensor, *saved: Tensor | None) -> list[Tensor]:
    return [_rows_first(torch.empty_like(x)) for x in saved[:5] if x is not None]


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: a checkpoint recomputes them for one reading
    gradients = iter(_backward(grad, *saved))
    return (*(None if x is None else next(gradients) for x in saved[:5]), None)


_forward.register_autograd(_differentiate, setup_context=_save)


def _autocast(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Run in the type that autocast asks for; `register_autocast` knows only a fixed one."""
    *sources, text_length = inputs
    device = sources[0].device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        cast = (None if x is None else x.to(dtype) for x in sources)
        result: tuple[Tensor, Tensor] = _forward(*cast, text_length)
        return result


_LIBRARY = torch.library.Library("cascade", "FRAGMENT")
for _key in ("AutocastCUDA", "AutocastCPU"):
    _LIBRARY.impl("joint_attention", _autocast, _key)


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Return what replaces the operators of this file in an exported graph."""
    return {
        torch.ops.cascade.joint_attention.default: _forward_decomposition,
        torch.ops.cascade.joint_attention_backward.default: _backward_decomposition,
    }


def _forward_decomposition(*args: Any) -> tuple[Tensor, Tensor]:
    inputs = Inputs(*args)
    key, _, visible = _concatenated(inputs)
    lse = _logits(inputs.q, key, visible).logsumexp(dim=-1) / math.log(2)
    return _reference(inputs), lse


def _backward_decomposition(grad: Tensor, *saved: Any) -> list[Tensor]:
    *args, out, lse = saved
    inputs = Inputs(*args)
    q, tokens = inputs.q, sizes(inputs)["tokens"]
    key, value, visible = _concatenated(inputs)
    wide = grad.float()
    # A row that sees nothing has the logarithm -inf, and weights exp(-inf + inf) to be 0.
    weight = (_logits(q, key, visible) - lse[..., None] * math.log(2)).exp().nan_to_num(nan=0.0)
    delta = (out.float() * wide).sum(dim=-1, keepdim=True)
    ds = weight * (wide @ value.float().mT - delta) / math.sqrt(q.shape[3])
    dkey, dvalue = ds.mT @ q.float(), weight.mT @ wide
    gradients = [ds @ key.float()]
    if inputs.k is not None:
        gradients += [dkey[:, :, tokens:], dvalue[:, :, tokens:]]
    if inputs.text_k is not None:
        gradients += [dkey[:, :, :tokens], dvalue[:, :, :tokens]]
    return [_rows_first(x.to(q.dtype)) for x in gradients]


def _logits(q: Tensor, key: Tensor, visible: Tensor | None) -> Tensor:
    """Return q key^T / sqrt(d) in fp32, -inf where a key is hidden."""
    logits = q.float() @ key.float().mT / math.sqrt(q.shape[3])
    return logits if visible is None else logits.masked_fill(~visible, -math.inf)
