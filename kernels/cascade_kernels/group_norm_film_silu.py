"""GroupNorm, a feature-wise affine map from the conditioning (FiLM), and the activation, at once.

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
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade_kernels import dispatch
from cascade_kernels.group_norm_film_silu_frugal import FrugalGroupNorm, stacked
from cascade_kernels.names import Backend

Activation = Literal["silu", "gelu", "none"]
ACTIVATIONS = ("silu", "gelu", "none")


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
        backend: see `dispatch.fused`; "auto" on a CPU is `FrugalGroupNorm`, of first derivatives.

    Returns:
        B C H W in the dtype of `x`, channels_last where `x` is. Statistics and arithmetic are in
        fp32 (fp64 for fp64 input).

    Raises:
        ValueError: one of `scale` and `shift` is missing, the groups do not divide the channels,
            `skip` does not fit `x`, the activation is unknown, or the backend cannot run here.
    """
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    _check(x, skip, channels, groups, scale, shift, activation)
    y: Tensor
    tensors = (x, skip, weight, bias, scale, shift)
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if not dispatch.fused(
        "group_norm_film_silu",
        x,
        backend,
        training,
        channels=channels,
        group=channels // groups,
        pixels=x.shape[2] * x.shape[3],
        bytes=x.element_size(),
    ):
        if backend == "auto" and x.device.type == "cpu" and not torch.compiler.is_compiling():
            y = FrugalGroupNorm.apply(  # type: ignore[no-untyped-call]
                *tensors, groups, eps, activation, skip_scale
            )
            return y
        return _reference(*tensors, groups, eps, activation, skip_scale)
    y = _forward(*tensors, groups, eps, activation, skip_scale)[0]
    return y


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the operation's decomposition into plain PyTorch, for an exported graph."""
    return {torch.ops.cascade.group_norm_film_silu.default: _decomposition}


def _check(
    x: Tensor,
    skip: Tensor | None,
    channels: int,
    groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> None:
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}")
    if channels % groups:
        raise ValueError(f"{groups} groups do not divide {channels} channels")
    if skip is not None:
        if (skip.shape[0], *skip.shape[2:]) != (x.shape[0], *x.shape[2:]):
            raise ValueError(
                f"skip {tuple(skip.shape)} and x {tuple(x.shape)} differ in more than channels"
            )
        if skip.dtype != x.dtype:
            raise ValueError(f"skip is {skip.dtype} and x is {x.dtype}; they must be alike")


def _reference(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    skip_scale: float,
) -> Tensor:
    """The operation in plain PyTorch."""
    wide = stacked(x, skip, skip_scale)
    gain, offset = weight.to(wide.dtype), bias.to(wide.dtype)
    if scale is None or shift is None:
        y = F.group_norm(wide, groups, gain, offset, eps)
    else:
        # Both affine maps fold into one of B C numbers: one pass over the image instead of three.
        factor = 1 + scale.to(wide.dtype)
        gain, offset = gain * factor, torch.addcmul(shift.to(wide.dtype), factor, offset)
        normal = F.group_norm(wide, groups, eps=eps)
        y = torch.addcmul(offset[:, :, None, None], normal, gain[:, :, None, None])
    match activation:
        case "silu":
            y = F.silu(y)
        case "gelu":
            y = F.gelu(y)
    # CUDA's GroupNorm returned another layout than it got up to PyTorch 2.11, at the least
    # (pytorch/pytorch#111824); elsewhere nothing is copied here.
    last = x.is_contiguous(memory_format=torch.channels_last)
    return y.to(x.dtype, memory_format=torch.channels_last if last else torch.preserve_format)


def _decomposition(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    skip_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference with the signature and the results of the registered operation."""
    y = _reference(x, skip, weight, bias, scale, shift, groups, eps, activation, skip_scale)
    grouped = stacked(x, skip, skip_scale).reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    return y, mean, torch.rsqrt(variance + eps)


@torch.library.custom_op("cascade::group_norm_film_silu", mutates_args=())
def _forward(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    skip_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, B C H W, and the mean and the reciprocal deviation of every group, B G."""
    from cascade_kernels.triton_code import group_norm_film_silu as code

    with torch.cuda.device_of(x):  # Triton launches on the current device
        return code.forward(
            x, skip, weight, bias, scale, shift, groups, eps, activation, skip_scale
        )


@_forward.register_fake
def _(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    skip_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    channels += 0 if skip is None else skip.shape[1]
    y = x.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
    mean = x.new_empty(batch, groups, dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


@torch.library.custom_op("cascade::group_norm_film_silu_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
    skip_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, skip, weight, bias, scale, shift; empty for what is absent."""
    from cascade_kernels.triton_code import group_norm_film_silu_backward as code

    with torch.cuda.device_of(x):
        return code.backward(
            dy, x, skip, weight, bias, scale, shift, mean, rstd, activation, skip_scale
        )


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    activation: str,
    skip_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        x.new_empty(0)
        if skip is None
        else torch.empty_like(skip, memory_format=torch.channels_last),
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
        x.new_empty(0) if scale is None else scale.new_empty(scale.shape),
        x.new_empty(0) if shift is None else shift.new_empty(shift.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the inputs and the statistics; the backward pass computes the rest again."""
    x, skip, weight, bias, scale, shift, _, _, activation, skip_scale = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, skip, weight, bias, scale, shift, mean, rstd)
    ctx.activation, ctx.skip_scale = activation, skip_scale
    ctx.mark_non_differentiable(mean, rstd)


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = _backward(dy, *ctx.saved_tensors, ctx.activation, ctx.skip_scale)
    needed = ctx.needs_input_grad[: len(gradients)]
    wanted = (d if need else None for d, need in zip(gradients, needed, strict=True))
    return *wanted, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
