"""`group_norm_film_silu` on a CPU, in PyTorch's operations but with the memory of a kernel.

Left to autograd, the reference keeps three images for the backward pass beside its input: the
stack, the normalised image and what is activated. Here the input and the groups' statistics are
kept and the rest is computed again, with one pass over the image; going forward, the steps work in
place. Second derivatives do not exist.

Shapes: as in `group_norm_film_silu`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class FrugalGroupNorm(torch.autograd.Function):
    """The operation under autograd; arguments as `group_norm_film_silu._forward`."""

    @staticmethod
    def forward(
        ctx: Any,
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
        """Normalise and activate, B C H W in the type and layout of x."""
        wide = stacked(x, skip, skip_scale)
        batch, channels, height, width = wide.shape
        y, mean, rstd = torch.native_group_norm(
            wide, None, None, batch, channels, height * width, groups, eps
        )
        del wide  # a stack is not needed any more
        gain, offset = _folded(weight, bias, scale, shift, y.dtype)
        torch.addcmul(_pixels(offset), y, _pixels(gain), out=y)
        match activation:
            case "silu":
                torch.ops.aten.silu_(y)
            case "gelu":
                torch.ops.aten.gelu_(y)
        ctx.save_for_backward(x, skip, weight, bias, scale, shift, mean, rstd)
        ctx.activation, ctx.skip_scale = activation, skip_scale
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the activation's argument again, and every gradient from two sums over pixels.

        With n = (x - mean) rstd the argument is n gain + offset; of each channel the gradients are
        d_offset = sum d and d_gain = sum d n, and d_x = rstd (d gain - n <d gain n> - <d gain>),
        where d is the argument's gradient and <> the mean over a group.
        """
        x, skip, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
        wide = stacked(x, skip, ctx.skip_scale)
        batch, channels, height, width = wide.shape
        size = channels // mean.shape[1]
        mean, rstd = (s.repeat_interleave(size, dim=1) for s in (mean, rstd))  # B C
        gain, offset = _folded(weight, bias, scale, shift, wide.dtype)
        slope = rstd * gain
        argument = torch.addcmul(_pixels(offset - mean * slope), wide, _pixels(slope))
        d = _activation_gradient(dy.to(wide.dtype), argument, ctx.activation)
        d_offset = d.sum(dim=(2, 3))
        products = torch.mul(d, wide, out=argument).sum(dim=(2, 3))
        d_gain = rstd * (products - mean * d_offset)

        def group_mean(values: Tensor) -> Tensor:
            means = values.view(batch, -1, size).sum(dim=2) / (size * height * width)
            spread: Tensor = means.repeat_interleave(size, dim=1)
            return spread

        factor = -(rstd**2) * group_mean(gain * d_gain)
        constant = -rstd * group_mean(gain * d_offset) - mean * factor
        d_wide = torch.addcmul(_pixels(constant), wide, _pixels(factor), out=argument)
        d_wide = d_wide.addcmul_(d, _pixels(slope)).to(x.dtype)
        d_x, d_skip = d_wide, None
        if skip is not None:
            d_x, d_skip = d_wide.split([x.shape[1], skip.shape[1]], dim=1)
            d_skip = _scaled(d_skip, ctx.skip_scale)
        vectors = _vector_gradients(d_gain, d_offset, weight, bias, scale)
        return d_x, d_skip, *vectors, None, None, None, None


def stacked(x: Tensor, skip: Tensor | None, skip_scale: float) -> Tensor:
    """[x, skip * skip_scale] in the type of the arithmetic, B C H W."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if skip is None:
        return x.to(dtype)
    return torch.cat([x.to(dtype), _scaled(skip.to(dtype), skip_scale)], dim=1)


def _scaled(x: Tensor, factor: float) -> Tensor:
    """Without the pass over the image that a factor of one would cost."""
    return x if factor == 1 else x * factor


def _folded(
    weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both affine maps as one, gain and offset, each B C or 1 C."""
    gain, offset = weight.to(dtype)[None], bias.to(dtype)[None]
    if scale is None or shift is None:
        return gain, offset
    factor = 1 + scale.to(dtype)
    return gain * factor, torch.addcmul(shift.to(dtype), factor, offset)


def _pixels(values: Tensor) -> Tensor:
    return values[:, :, None, None]


def _activation_gradient(dy: Tensor, argument: Tensor, activation: str) -> Tensor:
    match activation:
        case "silu":
            dy = torch.ops.aten.silu_backward(dy, argument)
        case "gelu":
            dy = torch.ops.aten.gelu_backward(dy, argument)
    return dy


def _vector_gradients(
    d_gain: Tensor, d_offset: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of weight, bias, scale and shift from those of gain and offset, B C."""
    if scale is None:
        return d_gain.sum(dim=0).to(weight), d_offset.sum(dim=0).to(bias), None, None
    factor = 1 + scale.to(d_gain.dtype)
    d_scale = d_gain * weight + d_offset * bias
    d_weight, d_bias = (d_gain * factor).sum(dim=0), (d_offset * factor).sum(dim=0)
    return d_weight.to(weight), d_bias.to(bias), d_scale.to(scale), d_offset.to(scale)
