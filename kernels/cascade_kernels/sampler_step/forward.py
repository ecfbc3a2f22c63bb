"""Triton kernels of one sampler step and their launch.

An image takes one launch, unless it is too large for a program and its threshold is dynamic: then
the clean image is written out, its percentile is found (`percentile.py`), and the step follows.
That computes the clean image anew, which reads as many bytes as fetching it would.

Shapes: `X PREVIOUS NOISE X_NEXT X0 RAW` B C H W float32, contiguous; `OUT` R C H W or R 2C H W with
pixels at one distance (`out_image out_channel out_pixel` are its strides); `SCALE` B; `HISTOGRAM` B
BINS. `n = C H W` values and `pixels = H W` of an image; `at` values of one block.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascade_kernels.dispatch import launch
from cascade_kernels.launching import on_its_device
from cascade_kernels.sampler_step.coefficients import Step, rank_of
from cascade_kernels.sampler_step.percentile import (
    BINS,
    DIGITS,
    count_digits,
    sampler_step_digit,
    sampler_step_pick,
    scale_of_block,
    size_bits,
)

# The greatest image that one program holds: 64 x 64 x 3 has 12,288 values.
ONE_PROGRAM = 16384
KINDS = {"none": 0, "static": 1, "dynamic": 2}
# Of a x + b y a compiler may round either product alone, and for sm_90 it chose by the memory
# layout. Unfused, an image has the same bits in any layout, and those of plain PyTorch.
FUSION = False
# What the noise of a step is multiplied with.
QUIET, FIXED, LEARNED = 0, 1, 2


@triton.jit
def _predict(
    X: tl.tensor, OUT: tl.tensor, b: tl.tensor, n: tl.tensor, at: tl.tensor, inside: tl.tensor,
    pixels: tl.tensor, out_image: tl.tensor, out_channel: tl.tensor, out_pixel: tl.tensor,
    from_x: tl.tensor, from_out: tl.tensor, guidance: tl.tensor,
    GUIDED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the clean image before its threshold, at the values `at` of image b."""
    offset = (at // pixels) * out_channel + (at % pixels) * out_pixel
    mixed = tl.load(OUT + b * out_image + offset, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        null_image = (b + tl.num_programs(1)) * out_image
        null = tl.load(OUT + null_image + offset, mask=inside, other=0.0).to(tl.float32)
        mixed = null + guidance * (mixed - null)
    x = tl.load(X + b * n + at, mask=inside, other=0.0)
    return from_x * x + from_out * mixed


@triton.jit
def _take(
    X: tl.tensor, OUT: tl.tensor, PREVIOUS: tl.tensor, NOISE: tl.tensor,
    X_NEXT: tl.tensor, X0: tl.tensor, b: tl.tensor, n: tl.tensor, at: tl.tensor,
    pixels: tl.tensor, out_image: tl.tensor, out_channel: tl.tensor, out_pixel: tl.tensor,
    from_x: tl.tensor, from_out: tl.tensor, guidance: tl.tensor, s: tl.tensor, keep: tl.tensor,
    pull: tl.tensor, recall: tl.tensor, std: tl.tensor, log_small: tl.tensor, log_range: tl.tensor,
    KIND: tl.constexpr, GUIDED: tl.constexpr, RECALLS: tl.constexpr, NOISY: tl.constexpr,
) -> None:  # fmt: skip
    """Take the step at the values `at` of image b, whose threshold is s unless KIND is 0."""
    inside = at < n
    x0 = _predict(
        X, OUT, b, n, at, inside, pixels, out_image, out_channel, out_pixel,
        from_x, from_out, guidance, GUIDED,
    )  # fmt: skip
    if KIND != 0:
        # Comparisons with NaN are false: it stays, where `tl.clamp` would have cleaned it.
        x0 = tl.where(x0 > s, s, x0)
        x0 = tl.where(x0 < -s, -s, x0)
    if KIND == 2:
        # The plain division is off by up to two units: s / s would not be 1.
        x0 = tl.div_rn(x0, s)
    tl.store(X0 + b * n + at, x0, mask=inside)
    x = tl.load(X + b * n + at, mask=inside, other=0.0)
    y = keep * x + pull * x0
    if RECALLS:
        y += recall * tl.load(PREVIOUS + b * n + at, mask=inside, other=0.0)
    if NOISY != 0:
        noise = tl.load(NOISE + b * n + at, mask=inside, other=0.0)
        if NOISY == 2:
            # The variance lies above the prediction's channels: n / P channels further up.
            offset = (at // pixels + n // pixels) * out_channel + (at % pixels) * out_pixel
            v = tl.load(OUT + b * out_image + offset, mask=inside, other=0.0).to(tl.float32)
            y += tl.exp((log_small + (v + 1.0) / 2.0 * log_range) / 2.0) * noise
        else:
            y += std * noise
    tl.store(X_NEXT + b * n + at, y, mask=inside)


@triton.jit
def sampler_step_pointwise(
    X: tl.tensor, OUT: tl.tensor, PREVIOUS: tl.tensor, NOISE: tl.tensor,
    X_NEXT: tl.tensor, X0: tl.tensor, SCALE: tl.tensor, n: tl.tensor, pixels: tl.tensor,
    out_image: tl.tensor, out_channel: tl.tensor, out_pixel: tl.tensor,
    from_x: tl.tensor, from_out: tl.tensor, guidance: tl.tensor, keep: tl.tensor, pull: tl.tensor,
    recall: tl.tensor, std: tl.tensor, log_small: tl.tensor, log_range: tl.tensor,
    KIND: tl.constexpr, GUIDED: tl.constexpr, RECALLS: tl.constexpr, NOISY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Take the step on a block of values; a dynamic threshold is known already."""
    b = tl.program_id(1).to(tl.int64)
    s = 1.0
    if KIND == 2:
        s = tl.load(SCALE + b)
    _take(
        X, OUT, PREVIOUS, NOISE, X_NEXT, X0, b, n, tl.program_id(0) * BLOCK + tl.arange(0, BLOCK),
        pixels, out_image, out_channel, out_pixel, from_x, from_out, guidance, s, keep, pull,
        recall, std, log_small, log_range, KIND, GUIDED, RECALLS, NOISY,
    )  # fmt: skip


@triton.jit
def sampler_step_whole(
    X: tl.tensor, OUT: tl.tensor, PREVIOUS: tl.tensor, NOISE: tl.tensor, X_NEXT: tl.tensor,
    X0: tl.tensor, n: tl.tensor, pixels: tl.tensor, out_image: tl.tensor, out_channel: tl.tensor,
    out_pixel: tl.tensor, from_x: tl.tensor, from_out: tl.tensor, guidance: tl.tensor,
    rank: tl.tensor, weight: tl.tensor, cap: tl.tensor, keep: tl.tensor, pull: tl.tensor,
    recall: tl.tensor, std: tl.tensor, log_small: tl.tensor, log_range: tl.tensor,
    GUIDED: tl.constexpr, RECALLS: tl.constexpr, NOISY: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:  # fmt: skip
    """Take the step with a dynamic threshold on an image of at most BLOCK values."""
    b = tl.program_id(1).to(tl.int64)
    values = tl.arange(0, BLOCK)
    x0 = _predict(
        X, OUT, b, n, values, values < n, pixels, out_image, out_channel, out_pixel,
        from_x, from_out, guidance, GUIDED,
    )  # fmt: skip
    s = scale_of_block(x0, values < n, rank, weight, cap)
    # In chunks and from the start: the registers hold two numbers per value, not five.
    for start in range(0, n, CHUNK):
        _take(
            X, OUT, PREVIOUS, NOISE, X_NEXT, X0, b, n, start + tl.arange(0, CHUNK), pixels,
            out_image, out_channel, out_pixel, from_x, from_out, guidance, s, keep, pull, recall,
            std, log_small, log_range, 2, GUIDED, RECALLS, NOISY,
        )  # fmt: skip


@triton.jit
def sampler_step_predict(
    X: tl.tensor, OUT: tl.tensor, RAW: tl.tensor, HISTOGRAM: tl.tensor, n: tl.tensor,
    pixels: tl.tensor, out_image: tl.tensor, out_channel: tl.tensor, out_pixel: tl.tensor,
    from_x: tl.tensor, from_out: tl.tensor, guidance: tl.tensor,
    GUIDED: tl.constexpr, BITS: tl.constexpr, SHIFT: tl.constexpr, BINS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Store the clean image before its threshold, and count the first digit of its sizes."""
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x0 = _predict(
        X, OUT, b, n, at, inside, pixels, out_image, out_channel, out_pixel,
        from_x, from_out, guidance, GUIDED,
    )  # fmt: skip
    tl.store(RAW + b * n + at, x0, mask=inside)
    count_digits(HISTOGRAM, b, size_bits(x0) >> SHIFT, inside, BITS, BINS)


@on_its_device
def forward(step: Step) -> tuple[Tensor, Tensor]:
    """Return x_next and the thresholded x0, B C H W float32, contiguous."""
    x, out = step.x.contiguous(), step.out
    previous, noise = (
        None if image is None else image.to(x.dtype).contiguous()
        for image in (step.previous, step.noise)
    )
    if out.stride(2) != out.shape[3] * out.stride(3):
        out = out.contiguous()  # pixels must follow one another at one distance
    x_next, x0 = torch.empty_like(x), torch.empty_like(x)
    values, update, threshold = x.shape[1:].numel(), step.update, step.threshold
    images = (x, out, previous, noise, x_next, x0)
    shape = (values, x.shape[2] * x.shape[3], out.stride(0), out.stride(1), out.stride(3))
    prediction = (step.prediction.from_x, step.prediction.from_out, step.prediction.guidance)
    small, large = update.log_variance or (0.0, 0.0)
    mix = (update.keep, update.pull, update.recall, update.std, small, large - small)
    rank, weight = rank_of(threshold.percentile, values)
    limit = (rank, weight, float("inf") if threshold.cap is None else threshold.cap)
    guided = step.prediction.guidance != 1
    switches = {
        "GUIDED": guided,
        "RECALLS": previous is not None,
        "NOISY": QUIET if noise is None else FIXED if update.log_variance is None else LEARNED,
    }
    if threshold.kind == "dynamic" and values <= ONE_PROGRAM:
        row = _options("sampler_step_whole", x)
        sampler_step_whole[1, len(x)](*images, *shape, *prediction, *limit, *mix, **switches, **row)
        return x_next, x0
    scale = None
    if threshold.kind == "dynamic":
        scale = _scales(x, out, x0, (*shape, *prediction), limit, guided)
    row = _options("sampler_step_pointwise", x)
    sampler_step_pointwise[triton.cdiv(values, row["BLOCK"]), len(x)](
        *images, scale, *shape, *prediction, *mix, KIND=KINDS[threshold.kind], **switches, **row
    )
    return x_next, x0


def _scales(
    x: Tensor,
    out: Tensor,
    raw: Tensor,
    numbers: tuple[float, ...],  # the arguments from `n` to `guidance`
    limit: tuple[int, float, float],  # rank, weight and cap of the percentile
    guided: bool,
) -> Tensor:
    """Write the clean image before its threshold to `raw`; return the scale of each image, B."""
    images, values = len(x), x.shape[1:].numel()
    histograms = torch.zeros(len(DIGITS), images, BINS, dtype=torch.int32, device=x.device)
    prefix, rank, larger = torch.empty(3, images, dtype=torch.int32, device=x.device)
    scale = torch.empty(images, dtype=torch.float32, device=x.device)
    for i, (histogram, (bits, shift)) in enumerate(zip(histograms, DIGITS, strict=True)):
        digit = {"BITS": bits, "SHIFT": shift, "BINS": BINS}
        if i == 0:
            row = _options("sampler_step_predict", x)
            sampler_step_predict[triton.cdiv(values, row["BLOCK"]), images](
                x, out, raw, histogram, *numbers, GUIDED=guided, **digit, **row
            )
        else:
            row = _options("sampler_step_digit", x)
            sampler_step_digit[triton.cdiv(values, row["BLOCK"]), images](
                raw, histogram, prefix, larger, values, **digit, **row
            )
        row = _options("sampler_step_pick", x)
        sampler_step_pick[(images,)](
            histogram, prefix, rank, larger, scale, *limit,
            BITS=bits, BINS=BINS, FIRST=i == 0, LAST=shift == 0, **row,
        )  # fmt: skip
    return scale


def _options(kernel: str, x: Tensor) -> dict[str, Any]:
    """Return the launch configuration of a kernel on images x, as keyword arguments."""
    values = x.shape[1:].numel()
    return {**launch(kernel, x.device, values=values).options, "enable_fp_fusion": FUSION}
