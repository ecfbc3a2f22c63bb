"""`group_norm_film_silu` on a CPU, in PyTorch's operations but with the memory of a kernel.

Left to autograd, the reference keeps three images for the backward pass beside its input: the
stack, the normalised image and what is activated. Here the input and the groups' statistics are
kept and the rest is recomputed, with one pass over the image; going forward, the steps work in
place. Second derivatives do not exist.

Shapes: as in `group_norm_film_silu.inputs`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cascade_kernels.group_norm_film_silu.inputs import Inputs, folded, pixels, scaled, stacked


class Recomputed(torch.autograd.Function):
    """The operation under autograd, of `Inputs`."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        """Normalise and activate, B C H W in the type and layout of x."""
        inputs = Inputs(*args)
        wide = stacked(inputs)
        batch, channels, height, width = wide.shape
        y, mean, rstd = torch.native_group_norm(
            wide, None, None, batch, channels, height * width, inputs.groups, inputs.eps
        )
        del wide  # a stack is not needed any more
        gain, offset = folded(inputs, y.dtype)
        torch.addcmul(pixels(offset), y, pixels(gain), out=y)
        match inputs.activation:
            case "silu":
                torch.ops.aten.silu_(y)
            case "gelu":
                torch.ops.aten.gelu_(y)
        ctx.save_for_backward(mean, rstd, *inputs[:6])
        ctx.settings = inputs[6:]
        return y.to(inputs.x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Recompute the activation's argument; all gradients follow from two sums over pixels.

        With n = (x - mean) rstd the argument is n gain + offset; of each channel the gradients are
        d_offset = sum d and d_gain = sum d n, and d_x = rstd (d gain - n <d gain n> - <d gain>),
        where d is the argument's gradient and <> the mean over a group.
        """
        mean, rstd, *tensors = ctx.saved_tensors
        inputs = Inputs(*tensors, *ctx.settings)
        wide = stacked(inputs)
        batch, channels, height, width = wide.shape
        size = channels // inputs.groups
        mean, rstd = (s.repeat_interleave(size, dim=1) for s in (mean, rstd))  # B C
        gain, offset = folded(inputs, wide.dtype)
        slope = rstd * gain
        argument = torch.addcmul(pixels(offset - mean * slope), wide, pixels(slope))
        d = _activation_gradient(dy.to(wide.dtype), argument, inputs.activation)
        d_offset = d.sum(dim=(2, 3))
        products = torch.mul(d, wide, out=argument).sum(dim=(2, 3))
        d_gain = rstd * (products - mean * d_offset)

        def group_mean(values: Tensor) -> Tensor:
            means = values.view(batch, -1, size).sum(dim=2) / (size * height * width)
            spread: Tensor = means.repeat_interleave(size, dim=1)
            return spread

        factor = -(rstd**2) * group_mean(gain * d_gain)
        constant = -rstd * group_mean(gain * d_offset) - mean * factor
        d_wide = torch.addcmul(pixels(constant), wide, pixels(factor), out=argument)
        d_wide = d_wide.addcmul_(d, pixels(slope)).to(inputs.x.dtype)
        d_x, d_skip = d_wide, None
        if inputs.skip is not None:
            d_x, d_skip = d_wide.split([inputs.x.shape[1], inputs.skip.shape[1]], dim=1)
            d_skip = scaled(d_skip, inputs.skip_scale)
        return d_x, d_skip, *_vector_gradients(d_gain, d_offset, inputs), None, None, None, None


def _activation_gradient(dy: Tensor, argument: Tensor, activation: str) -> Tensor:
    match activation:
        case "silu":
            dy = torch.ops.aten.silu_backward(dy, argument)
        case "gelu":
            dy = torch.ops.aten.gelu_backward(dy, argument)
    return dy


def _vector_gradients(
    d_gain: Tensor, d_offset: Tensor, inputs: Inputs
) -> tuple[Tensor | None, ...]:
    """Return the gradients of weight, bias, scale and shift from those of the folded map, B C."""
    weight, bias, scale = inputs.weight, inputs.bias, inputs.scale
    if scale is None:
        return d_gain.sum(dim=0).to(weight), d_offset.sum(dim=0).to(bias), None, None
    factor = 1 + scale.to(d_gain.dtype)
    d_scale = d_gain * weight + d_offset * bias
    d_weight, d_bias = (d_gain * factor).sum(dim=0), (d_offset * factor).sum(dim=0)
    return d_weight.to(weight), d_bias.to(bias), d_scale.to(scale), d_offset.to(scale)
