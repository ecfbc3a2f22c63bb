"""One step of a sampler: the public call, its reference in PyTorch, and its registration.

Every sampler of this project is linear in what it mixes. With the network's output `out` at x,

    out    = null + guidance (text - null)          classifier-free guidance (Imagen, eq. 2)
    x0     = threshold(from_x x + from_out out)     whatever the network predicts
    x_next = keep x + pull x0 + recall previous + std noise

and the coefficients are numbers of the step. Unfused, every operation here is a pass over the
image, and the percentile of a dynamic threshold is several.

Shapes: `B` batch, `C H W` image, `R` rows of the network's output: B, or 2 B under guidance.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from cascade_kernels.dispatch import fused
from cascade_kernels.names import Backend, ThresholdKind
from cascade_kernels.operators import operator
from cascade_kernels.sampler_step.coefficients import (
    Prediction,
    Step,
    Threshold,
    Update,
    check,
    clip,
    fraction_of,
)


def sampler_step(
    x: Tensor,
    out: Tensor,
    prediction: Prediction,
    threshold: Threshold,
    update: Update,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Take one step of a sampler.

    The percentile is exact, an image does not depend on its batch, and nothing waits for the
    device. The kernel takes float32 images and has no backward pass; where either fails, "auto"
    takes the reference.

    Args:
        x: B C H W, the image at the present noise level.
        out: R C H W or, with a learned variance in [-1, 1] above the prediction, R 2C H W; any
            strides and any floating type.
        prediction: from x and `out` to the clean image.
        threshold: applied to the clean image.
        update: from there to the next noise level.
        previous: B C H W, another clean image; read only where the update recalls it.
        noise: B C H W, unit normal; read only where the update adds noise.
        backend: which path to take.

    Returns:
        x_next and the thresholded x0, each B C H W in the dtype of x.

    Raises:
        ValueError: shapes do not fit, something that the update asks for is missing, or the kernel
            was asked for and cannot run.
    """
    step = Step(x, out, prediction, threshold, update, previous, noise)
    check(step)
    tracked = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, out, previous, noise)
    )
    plain = tracked or x.dtype != torch.float32
    if backend == "triton" and plain:
        reason = "it has no backward pass" if tracked else f"x is {x.dtype}, not float32"
        raise ValueError(f"sampler_step cannot run its Triton kernel: {reason}.")
    values = x.shape[1:].numel()
    if plain or not fused("sampler_step", x, backend, training=False, values=values):
        return _reference(step)
    x_next, x0 = _OPERATOR(
        x,
        out,
        previous if update.recall != 0 else None,
        noise if update.adds_noise else None,
        [prediction.from_x, prediction.from_out, prediction.guidance],
        threshold.kind,
        threshold.percentile,
        threshold.cap,
        [update.keep, update.pull, update.recall, update.std],
        update.log_variance,
    )
    return x_next, x0


def guide(out: Tensor, channels: int, guidance: float) -> Tensor:
    """Mix both branches of a network's output by classifier-free guidance.

    Args:
        out: R C' H W; the first `channels` of C' are mixed, the others are the text branch's.
        channels: C, those that predict the image.
        guidance: weight w; at 1 there is but one branch.

    Returns:
        B C' H W.
    """
    if guidance == 1:
        return out
    text, null = out.chunk(2)
    mixed = null[:, :channels] + guidance * (text[:, :channels] - null[:, :channels])
    return torch.cat([mixed, text[:, channels:]], dim=1) if out.shape[1] > channels else mixed


def _reference(step: Step) -> tuple[Tensor, Tensor]:
    x, out, prediction, threshold, update, previous, noise = step
    channels = x.shape[1]
    # Under autocast the network answers in bfloat16; the conversion to x0 must not.
    guided = guide(out.to(x.dtype), channels, prediction.guidance)
    x0 = clip(prediction.from_x * x + prediction.from_out * guided[:, :channels], threshold)
    fraction = None if update.log_variance is None else fraction_of(guided[:, channels:])
    return update(x, x0, previous, noise, fraction), x0


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    from cascade_kernels.sampler_step.forward import forward

    return forward(_step(*args))


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


_OPERATOR = operator(
    "sampler_step(Tensor x, Tensor out, Tensor? previous, Tensor? noise, float[] prediction, "
    "str kind, float percentile, float? cap, float[] update, float[]? log_variance) "
    "-> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)


class _Threshold(NamedTuple):
    kind: ThresholdKind
    percentile: float
    cap: float | None


def _step(
    x: Tensor,
    out: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
    prediction: Sequence[float],
    kind: ThresholdKind,
    percentile: float,
    cap: float | None,
    update: Sequence[float],
    log_variance: Sequence[float] | None,
) -> Step:
    """Return the step that the arguments of the registered operation stand for."""
    variance = None if log_variance is None else (log_variance[0], log_variance[1])
    keep, pull, recall, std = update
    return Step(
        x,
        out,
        Prediction(*prediction),
        _Threshold(kind, percentile, cap),
        Update(keep, pull, recall, std, variance),
        previous,
        noise,
    )


def decompositions() -> dict[OpOverload, Callable[..., tuple[Tensor, Tensor]]]:
    """Return the operation's reference under the operation's signature, for `torch.export`."""
    return {_OPERATOR: _decomposition}


def _decomposition(*args: Any) -> tuple[Tensor, Tensor]:
    x_next, x0 = _reference(_step(*args))
    return x_next.contiguous(), x0.contiguous()
