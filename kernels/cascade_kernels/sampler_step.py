"""One step of a sampler: guidance, the clean image, its threshold and the update, at once.

Every sampler of this project is linear in what it mixes. With the network's output `out` at x,

    out    = null + guidance (text - null)          classifier-free guidance (Imagen, eq. 2)
    x0     = threshold(from_x x + from_out out)     whatever the network predicts
    x_next = keep x + pull x0 + recall previous + std noise

and the coefficients are numbers of the step. Unfused, every operation here is a pass over the
image, and the percentile of a dynamic threshold is several.

Shapes: `B` batch, `C H W` image, `R` rows of the network's output: B, or 2 B under guidance.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from cascade_kernels import dispatch
from cascade_kernels.names import Backend, ThresholdKind
from cascade_kernels.sampler_coefficients import (
    Prediction,
    Threshold,
    Update,
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
    _check(x, out, prediction, update, previous, noise)
    tracked = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, out, previous, noise)
    )
    plain = tracked or x.dtype != torch.float32
    if backend == "triton" and plain:
        obstacle = "it has no backward pass" if tracked else f"x is {x.dtype}, not float32"
        raise ValueError(f"sampler_step cannot run its Triton kernel: {obstacle}.")
    values = x.shape[1:].numel()
    if plain or not dispatch.fused("sampler_step", x, backend, training=False, values=values):
        return _reference(x, out, prediction, threshold, update, previous, noise)
    x_next, x0 = _op(
        x,
        out,
        previous if update.recall != 0 else None,
        noise if update.std != 0 or update.log_variance is not None else None,
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


class _Threshold(NamedTuple):
    kind: ThresholdKind
    percentile: float
    cap: float | None


def decompositions() -> dict[OpOverload, Callable[..., tuple[Tensor, Tensor]]]:
    """Return the operation's reference under the operation's signature, for `torch.export`."""
    return {torch.ops.cascade.sampler_step.default: _decomposed}


def _reference(
    x: Tensor,
    out: Tensor,
    prediction: Prediction,
    threshold: Threshold,
    update: Update,
    previous: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    # Under autocast the network answers in bfloat16; the conversion to x0 must not.
    guided = guide(out.to(x.dtype), channels, prediction.guidance)
    x0 = clip(prediction.from_x * x + prediction.from_out * guided[:, :channels], threshold)
    fraction = None if update.log_variance is None else fraction_of(guided[:, channels:])
    return update(x, x0, previous, noise, fraction), x0


def _check(
    x: Tensor,
    out: Tensor,
    prediction: Prediction,
    update: Update,
    previous: Tensor | None,
    noise: Tensor | None,
) -> None:
    rows, channels = x.shape[0] * (1 if prediction.guidance == 1 else 2), x.shape[1]
    learned = update.log_variance is not None
    if learned and out.shape[1] == channels:
        raise ValueError("this network predicts no variance; take a fixed one")
    fits = out.shape[1] in (channels, 2 * channels) and out.shape[2:] == x.shape[2:]
    if out.shape[0] != rows or not fits:
        raise ValueError(
            f"an image of shape {tuple(x.shape)} under guidance {prediction.guidance:g} needs "
            f"{rows} rows of output, not {tuple(out.shape)}"
        )
    if update.recall != 0 and (previous is None or previous.shape != x.shape):
        raise ValueError("this step recalls a previous clean image of x's shape; give one")
    if (update.std != 0 or learned) and (noise is None or noise.shape != x.shape):
        raise ValueError("this step adds noise of x's shape; give some")


@torch.library.custom_op("cascade::sampler_step", mutates_args=())
def _op(
    x: Tensor,
    out: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
    prediction: Sequence[float],
    kind: str,
    percentile: float,
    cap: float | None,
    update: Sequence[float],
    log_variance: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    from cascade_kernels.triton_code.sampler_step import run

    with torch.cuda.device_of(x):  # Triton launches on the current device
        return run(x, out, previous, noise, prediction, kind, percentile, cap, update, log_variance)


@_op.register_fake
def _fake(
    x: Tensor,
    out: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
    prediction: Sequence[float],
    kind: str,
    percentile: float,
    cap: float | None,
    update: Sequence[float],
    log_variance: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _decomposed(
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
) -> tuple[Tensor, Tensor]:
    from_x, from_out, guidance = prediction
    keep, pull, recall, std = update
    variance = None if log_variance is None else (log_variance[0], log_variance[1])
    x_next, x0 = _reference(
        x,
        out,
        Prediction(from_x, from_out, guidance),
        _Threshold(kind, percentile, cap),
        Update(keep, pull, recall, std, variance),
        previous,
        noise,
    )
    return x_next.contiguous(), x0.contiguous()
