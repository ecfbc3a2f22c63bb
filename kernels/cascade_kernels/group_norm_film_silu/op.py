"""GroupNorm with FiLM and activation: the public call, its reference, and its registration.

The two norms of every residual block have this form (Dhariwal & Nichol 2021, section 3, "adaptive
group normalization"). Unfused it is most of a wide-image network's memory traffic. The norm can
span two images stacked along their channels, as at every block of a U-Net's way up, without the
stack ever being written.

The Triton kernels work on channels_last memory: an image laid out otherwise is copied into it
first, and what they return is laid out so.

Shapes: `B` batch, `C H W` channels, height and width, `G` groups; `C = C1 + C2` where an image of
C1 channels and a skip of C2 are stacked.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_kernels.dispatch import fused
from cascade_kernels.group_norm_film_silu.inputs import (
    Activation,
    Call,
    Inputs,
    check,
    folded,
    pixels,
    sizes,
    stacked,
)
from cascade_kernels.group_norm_film_silu.recompute import Recomputed
from cascade_kernels.launching import traced, tracked
from cascade_kernels.names import Backend
from cascade_kernels.operators import operator


def group_norm_film_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: Activation = "silu",
    *,
    skip: Tensor | None = None,
    skip_scale: float = 1.0,
    backend: Backend = "auto",
) -> Tensor:
    """Return activation(group_norm([x, skip * skip_scale]) * (1 + scale) + shift).

    Args:
        x: B C1 H W.
        weight: the norm's gain, C.
        bias: the norm's offset, C.
        groups: number of groups; divides C. A group may hold channels of both images.
        eps: added to the variance.
        scale: B C, given together with `shift`; None for a norm without conditioning.
        shift: B C.
        activation: applied last; "gelu" is the exact one.
        skip: B C2 H W in the dtype of `x`, stacked behind it; None: C = C1.
        skip_scale: factor on `skip`.
        backend: see `dispatch.fused`; "auto" on a CPU is `Recomputed`, of first derivatives.

    Returns:
        B C H W in the dtype of `x`, channels_last where `x` is. Statistics and arithmetic are in
        fp32 (fp64 for fp64 input).

    Raises:
        ValueError: one of `scale` and `shift` is missing, the groups do not divide the channels,
            `skip` does not fit `x`, the activation is unknown, or the backend cannot run here.
    """
    inputs = Inputs(x, skip, weight, bias, scale, shift, groups, eps, activation, skip_scale)
    y: Tensor
    tensors = inputs[:6]
    training = torch.is_grad_enabled() and tracked(*tensors)
    seen = traced(x)
    # Where nobody looks on, a call's plan refuses what cannot run, once for all calls of its kind.
    planned = backend == "triton" and not seen
    if planned or fused("group_norm_film_silu", x, backend, training, **sizes(inputs)):
        if seen:
            check(inputs)
            y = _OPERATOR(*inputs)[0]
        elif training:
            y = _Norm.apply(*inputs)  # type: ignore[no-untyped-call]
        else:
            y = _forward(*inputs)[0]
        return y
    check(inputs)
    if backend == "auto" and x.device.type == "cpu" and not torch.compiler.is_compiling():
        y = Recomputed.apply(*inputs)  # type: ignore[no-untyped-call]
    else:
        y = _reference(inputs)
    return y


def _reference(inputs: Inputs) -> Tensor:
    """Compute the operation in plain PyTorch."""
    x, wide = inputs.x, stacked(inputs)
    gain, offset = folded(inputs, wide.dtype)
    if inputs.scale is None:
        y = F.group_norm(wide, inputs.groups, gain, offset, inputs.eps)
    else:
        # Folded, both affine maps are one pass over the image instead of three.
        normal = F.group_norm(wide, inputs.groups, eps=inputs.eps)
        y = torch.addcmul(pixels(offset), normal, pixels(gain))
    match inputs.activation:
        case "silu":
            y = F.silu(y)
        case "gelu":
            y = F.gelu(y)
    # CUDA's GroupNorm returned another layout than it got up to PyTorch 2.11, at the least
    # (pytorch/pytorch#111824); elsewhere nothing is copied here.
    last = x.is_contiguous(memory_format=torch.channels_last)
    return y.to(x.dtype, memory_format=torch.channels_last if last else torch.preserve_format)


@cache
def _kernels() -> tuple[Callable[[Inputs], tuple[Tensor, ...]], Callable[[Call], list[Any]]]:
    """Import the forward and the backward pass when one first runs; they import Triton."""
    from cascade_kernels.group_norm_film_silu.backward import backward
    from cascade_kernels.group_norm_film_silu.forward import forward

    return forward, backward


class _Norm(torch.autograd.Function):
    """The kernels under autograd, where nobody looks on: an operator takes twice the CPU."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Return y, B C H W."""
        y, mean, rstd = _forward(*inputs)
        ctx.save_for_backward(mean, rstd, *inputs[:6])
        ctx.settings = inputs[6:]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the arguments of `forward`."""
        saved = ctx.saved_tensors
        call = (dy, *saved, *ctx.settings)
        # Where they are to be differentiated as well, the operator is what refuses it.
        seen = torch.is_grad_enabled()
        return _spread(ctx, saved, _BACKWARD(*call) if seen else _kernels()[1](Call(*call)))


def _spread(
    ctx: Any, saved: Sequence[Tensor], found: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Give every input its gradient, if it needs one; the settings after them have none."""
    dx, dskip, affine, dscale, dshift = found
    assert affine is not None
    vectors = (d.to(like) for d, like in zip(affine.unbind(), saved[4:6], strict=True))
    needed = zip((dx, dskip, *vectors, dscale, dshift), ctx.needs_input_grad, strict=False)
    return *(gradient if need else None for gradient, need in needed), None, None, None, None


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, B C H W, and the mean and the reciprocal deviation of every group, B G."""
    y, mean, rstd = _kernels()[0](Inputs(*inputs))
    return y, mean, rstd


def _backward(*call: Any) -> tuple[Tensor, ...]:
    """Return what `backward` does; empty for what is absent."""
    found = _kernels()[1](Call(*call))
    return tuple(call[0].new_empty(0) if one is None else one for one in found)


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(*args)
    batch, _, height, width = inputs.x.shape
    channels = sizes(inputs)["channels"]
    y = inputs.x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
    mean = inputs.x.new_empty(batch, inputs.groups, dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    call = Call(*args)
    last, absent = torch.channels_last, partial(call.dy.new_empty, 0)
    return (
        torch.empty_like(call.x, memory_format=last),
        absent() if call.skip is None else torch.empty_like(call.skip, memory_format=last),
        call.dy.new_empty(2, len(call.weight), dtype=torch.float32),
        *(absent() if x is None else x.new_empty(x.shape) for x in (call.scale, call.shift)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the inputs and the statistics; the backward pass computes the rest again."""
    _, mean, rstd = output
    ctx.save_for_backward(mean, rstd, *inputs[:6])
    ctx.settings = inputs[6:]
    ctx.mark_non_differentiable(mean, rstd)


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    return _spread(ctx, saved, _BACKWARD(dy, *saved, *ctx.settings))


_INPUTS = (
    "Tensor x, Tensor? skip, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, "
    "int groups, float eps, str activation, float skip_scale"
)
_BACKWARD = operator(
    f"group_norm_film_silu_backward(Tensor dy, Tensor mean, Tensor rstd, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_OPERATOR = operator(
    f"group_norm_film_silu({_INPUTS}) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    differentiate=(_differentiate, _save),
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the operation's decomposition into plain PyTorch, for an exported graph."""
    return {_OPERATOR: _decomposition}


def _decomposition(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(*args)
    grouped = stacked(inputs).reshape(inputs.x.shape[0], inputs.groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    return _reference(inputs), mean, torch.rsqrt(variance + inputs.eps)
