"""Joint attention: the public call, its reference in PyTorch, and its registration.

Imagen concatenates the text to the keys and values of every self-attention layer (Saharia et al.
2022, appendix D.3.1). Here the two sources stay apart, so that the fused kernel need not copy them
into one tensor, and reads of the text only the tokens that are there.

Shapes: `B` batch, `H` heads, `N` image tokens, `L` text tokens, `K` keys of both sources, `d`
channels of one head.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_kernels.dispatch import fused
from cascade_kernels.joint_attention.inputs import Call, Inputs, check, rows_first, settled, sizes
from cascade_kernels.launching import traced, tracked
from cascade_kernels.names import Backend, BackwardPath
from cascade_kernels.operators import operator


def joint_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_length: Tensor | None,
    *,
    backend: Backend = "auto",
    backward: BackwardPath = "auto",
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
        backward: who computes the image's part of the kernel's gradients. PyTorch's "cudnn" and
            "flash" may add in another order from call to call; where
            `torch.use_deterministic_algorithms` asks for it, "auto" is "own".

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
    training = torch.is_grad_enabled() and tracked(*inputs)
    seen = traced(q)
    # Where nobody looks on, a call's plan refuses what cannot run, once for all calls of its kind.
    planned = backend == "triton" and not seen
    if not planned and not fused("joint_attention", q, backend, training, **sizes(inputs)):
        check(inputs)
        return _reference(inputs)
    inputs = _cast(inputs)
    path = settled(backward, inputs) if training else "own"
    out: Tensor
    if seen:
        check(inputs)
        out = _OPERATOR(*inputs, path)[0]
    elif training:
        out = _Attention.apply(path, *inputs)  # type: ignore[no-untyped-call]
    else:
        out = _forward(*inputs, path)[0]
    return out


def _cast(inputs: Inputs) -> Inputs:
    """Cast to the type that autocast asks for; its projections need not agree in one."""
    device = inputs.q.device.type
    if not torch.is_autocast_enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    q, k, v, text_k, text_v = (None if x is None else x.to(dtype) for x in inputs[:5])
    assert q is not None
    return Inputs(q, k, v, text_k, text_v, inputs.text_length)


def _reference(inputs: Inputs) -> Tensor:
    """Concatenate both sources and attend.

    Second derivatives exist where PyTorch's own attention has them: under `SDPBackend.MATH`.
    """
    key, value, visible = _concatenated(inputs)
    return rows_first(F.scaled_dot_product_attention(inputs.q, key, value, attn_mask=visible))


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


@cache
def _kernels() -> tuple[Callable[[Inputs], tuple[Tensor, Tensor]], Callable[..., list[Tensor]]]:
    """Import the forward and the backward pass when one first runs; they import Triton."""
    from cascade_kernels.joint_attention.forward import forward
    from cascade_kernels.joint_attention.gradients import gradients

    return forward, gradients


class _Attention(torch.autograd.Function):
    """The kernels under autograd, where nobody looks on: an operator takes twice the CPU."""

    @staticmethod
    def forward(ctx: Any, path: BackwardPath, *inputs: Any) -> Tensor:
        """Return the output, B H N d."""
        out, lse = _forward(*inputs, path)
        ctx.save_for_backward(*inputs, out, lse)
        ctx.path = path
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments of `forward`."""
        saved = ctx.saved_tensors
        # Where they are to be differentiated as well, the operator is what refuses it.
        run = _BACKWARD if torch.is_grad_enabled() else _gradients
        return None, *_spread(run(grad, *saved, ctx.path), saved[:6])


def _spread(found: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Give every input its gradient; None to those that are absent, and to the text's length."""
    rest = iter(found)
    *sources, _ = inputs
    return [*(None if x is None else next(rest) for x in sources), None]


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    """Return the output, and the log of the softmax's denominator, B H N in fp32."""
    *inputs, _ = args
    return _kernels()[0](Inputs(*inputs))


def _gradients(grad: Tensor, *args: Any) -> list[Tensor]:
    """Return the gradients of q, k, v, text_k and text_v, without those of absent sources."""
    *inputs, out, lse, path = args
    return _kernels()[1](Call._make((*inputs, out, grad, lse)), path)


def _forward_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return rows_first(torch.empty_like(q)), q.new_empty(q.shape[:3], dtype=torch.float32)


def _gradients_fake(_: Tensor, *args: Any) -> list[Tensor]:
    return [rows_first(torch.empty_like(x)) for x in args[:5] if x is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.path = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: a checkpoint recomputes them for one reading
    return *_spread(_BACKWARD(grad, *saved, ctx.path), saved[:6]), None


_INPUTS = "Tensor q, Tensor? k, Tensor? v, Tensor? text_k, Tensor? text_v, Tensor? text_length"
_BACKWARD = operator(
    f"joint_attention_backward(Tensor grad, {_INPUTS}, Tensor out, Tensor lse, str path)"
    " -> Tensor[]",
    _gradients,
    _gradients_fake,
)
_OPERATOR = operator(
    f"joint_attention({_INPUTS}, str path) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    differentiate=(_differentiate, _save),
)


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Return what replaces the operators of this file in an exported graph."""
    return {
        _OPERATOR: _forward_decomposition,
        _BACKWARD: _backward_decomposition,
    }


def _forward_decomposition(*args: Any) -> tuple[Tensor, Tensor]:
    inputs = Inputs(*args[:6])
    key, _, visible = _concatenated(inputs)
    return _reference(inputs), _logits(inputs.q, key, visible).logsumexp(dim=-1)


def _backward_decomposition(grad: Tensor, *saved: Any) -> list[Tensor]:
    *args, out, lse, _ = saved
    inputs = Inputs(*args)
    q, tokens = inputs.q, sizes(inputs)["tokens"]
    key, value, visible = _concatenated(inputs)
    wide = grad.float()
    # A row that sees nothing has the logarithm -inf, and weights exp(-inf + inf) to be 0.
    weight = (_logits(q, key, visible) - lse[..., None]).exp().nan_to_num(nan=0.0)
    delta = (out.float() * wide).sum(dim=-1, keepdim=True)
    ds = weight * (wide @ value.float().mT - delta) / math.sqrt(q.shape[3])
    dkey, dvalue = ds.mT @ q.float(), weight.mT @ wide
    gradients = [ds @ key.float()]
    if inputs.k is not None:
        gradients += [dkey[:, :, tokens:], dvalue[:, :, tokens:]]
    if inputs.text_k is not None:
        gradients += [dkey[:, :, :tokens], dvalue[:, :, :tokens]]
    return [rows_first(x.to(q.dtype)) for x in gradients]


def _logits(q: Tensor, key: Tensor, visible: Tensor | None) -> Tensor:
    """Return q key^T / sqrt(d) in fp32, -inf where a key is hidden."""
    logits = q.float() @ key.float().mT / math.sqrt(q.shape[3])
    return logits if visible is None else logits.masked_fill(~visible, -math.inf)
