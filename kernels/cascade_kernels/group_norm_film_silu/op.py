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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_kernels.dispatch import fused
from cascade_kernels.group_norm_film_silu.inputs import (
    Activation,
    Inputs,
    check,
    folded,
    pixels,
    sizes,
    stacked,
)
from cascade_kernels.group_norm_film_silu.recompute import Recomputed
from cascade_kernels.names import Backend


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
    check(inputs)
    y: Tensor
    tensors = inputs[:6]
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if fused("group_norm_film_silu", x, backend, training, **sizes(inputs)):
        y = _forward(*inputs)[0]
    elif backend == "auto" and x.device.type == "cpu" and not torch.compiler.is_compiling():
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


_INPUTS = (
    "Tensor x, Tensor? skip, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, "
    "int groups, float eps, str activation, float skip_scale"
)


@torch.library.custom_op(
    "cascade::group_norm_film_silu",
    mutates_args=(),
    schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)",
)
def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, B C H W, and the mean and the reciprocal deviation of every group, B G."""
    from cascade_kernels.group_norm_film_silu.forward import forward

    return forward(Inputs(*inputs))


@torch.library.custom_op(
    "cascade::group_norm_film_silu_backward",
    mutates_args=(),
    schema=f"(Tensor dy, Tensor mean, Tensor rstd, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(dy: Tensor, mean: Tensor, rstd: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    """Return the gradients of x, skip, weight, bias, scale, shift; empty for what is absent."""
    from cascade_kernels.group_norm_film_silu.backward import backward

    return backward(dy, mean, rstd, Inputs(*inputs))


@_forward.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(*args)
    batch, _, height, width = inputs.x.shape
    channels = sizes(inputs)["channels"]
    y = inputs.x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
    mean = inputs.x.new_empty(batch, inputs.groups, dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


@_backward.register_fake
def _(dy: Tensor, mean: Tensor, rstd: Tensor, *args: Any) -> tuple[Tensor, ...]:
    inputs = Inputs(*args)
    images = [
        inputs.x.new_empty(0)
        if image is None
        else torch.empty_like(image, memory_format=torch.channels_last)
        for image in inputs[:2]
    ]
    vectors = [
        inputs.x.new_empty(0) if vector is None else vector.new_empty(vector.shape)
        for vector in inputs[2:6]
    ]
    return (*images, *vectors)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the inputs and the statistics; the backward pass computes the rest again."""
    _, mean, rstd = output
    ctx.save_for_backward(mean, rstd, *inputs[:6])
    ctx.settings = inputs[6:]
    ctx.mark_non_differentiable(mean, rstd)


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = _backward(dy, *ctx.saved_tensors, *ctx.settings)
    needed = ctx.needs_input_grad[: len(gradients)]
    wanted = (d if need else None for d, need in zip(gradients, needed, strict=True))
    return *wanted, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the operation's decomposition into plain PyTorch, for an exported graph."""
    return {torch.ops.cascade.group_norm_film_silu.default: _decomposition}


def _decomposition(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(*args)
    grouped = stacked(inputs).reshape(inputs.x.shape[0], inputs.groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    return _reference(inputs), mean, torch.rsqrt(variance + inputs.eps)
