"""Triton kernels of one sampler step and their launcher.

An image takes one launch, unless it is too large for a program and its threshold is dynamic: then
the clean image is written out, its percentile is found (`sampler_percentile`), and the step
follows. That computes the clean image anew, which reads as many bytes as fetching it would.

Shapes: `B` batch, `C H W` image; `n = C H W` values and `P = H W` pixels of an image.
"""

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cascade_kernels.dispatch import Launch, Table, launch
from cascade_kernels.sampler_coefficients import rank_of
from cascade_kernels.triton_code.sampler_percentile import (
    BINS,
    DIGITS,
    count_digits,
    digit_kernel,
    pick_kernel,
    scale_of_block,
    size_bits,
)
from cascade_kernels.variant import Variant

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
    from_x: tl.tensor, from_out: tl.tensor, guidance: tl.tensor, GUIDED: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The clean image before its threshold, at the values `at` of image b."""
    place = (at // pixels) * out_channel + (at % pixels) * out_pixel
    mixed = tl.load(OUT + b * out_image + place, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        null_image = (b + tl.num_programs(1)) * out_image
        null = tl.load(OUT + null_image + place, mask=inside, other=0.0).to(tl.float32)
        mixed = null + guidance * (mixed - null)
    x = tl.load(X + b * n + at, mask=inside, other=0.0)
    return from_x * x + from_out * mixed


@triton.jit
def _take(
    X: tl.tensor, OUT: tl.tensor, PREVIOUS: tl.tensor, NOISE: tl.tensor, X_NEXT: tl.tensor,
    X0: tl.tensor, b: tl.tensor, n: tl.tensor, at: tl.tensor, pixels: tl.tensor,
    out_image: tl.tensor, out_channel: tl.tensor, out_pixel: tl.tensor, from_x: tl.tensor,
    from_out: tl.tensor, guidance: tl.tensor, s: tl.tensor, keep: tl.tensor, pull: tl.tensor,
    recall: tl.tensor, std: tl.tensor, log_small: tl.tensor, log_range: tl.tensor,
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
            place = (at // pixels + n // pixels) * out_channel + (at % pixels) * out_pixel
            v = tl.load(OUT + b * out_image + place, mask=inside, other=0.0).to(tl.float32)
            y += tl.exp((log_small + (v + 1.0) / 2.0 * log_range) / 2.0) * noise
        else:
            y += std * noise
    tl.store(X_NEXT + b * n + at, y, mask=inside)


@triton.jit
def pointwise_kernel(
    X: tl.tensor, OUT: tl.tensor, PREVIOUS: tl.tensor, NOISE: tl.tensor, X_NEXT: tl.tensor,
    X0: tl.tensor, SCALE: tl.tensor, n: tl.tensor, pixels: tl.tensor, out_image: tl.tensor,
    out_channel: tl.tensor, out_pixel: tl.tensor, from_x: tl.tensor, from_out: tl.tensor,
    guidance: tl.tensor, keep: tl.tensor, pull: tl.tensor, recall: tl.tensor, std: tl.tensor,
    log_small: tl.tensor, log_range: tl.tensor, KIND: tl.constexpr, GUIDED: tl.constexpr,
    RECALLS: tl.constexpr, NOISY: tl.constexpr, BLOCK: tl.constexpr,
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
def whole_kernel(
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
def predict_kernel(
    X: tl.tensor, OUT: tl.tensor, RAW: tl.tensor, HISTOGRAM: tl.tensor, n: tl.tensor,
    pixels: tl.tensor, out_image: tl.tensor, out_channel: tl.tensor, out_pixel: tl.tensor,
    from_x: tl.tensor, from_out: tl.tensor, guidance: tl.tensor, GUIDED: tl.constexpr,
    BITS: tl.constexpr, SHIFT: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
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


def run(
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
    """Launch one step; arguments as those of the operation `cascade::sampler_step`.

    Returns:
        x_next and the thresholded x0, B C H W float32, contiguous.
    """
    x = x.contiguous()
    previous = None if previous is None else previous.to(x.dtype).contiguous()
    noise = None if noise is None else noise.to(x.dtype).contiguous()
    if out.stride(2) != out.shape[3] * out.stride(3):
        out = out.contiguous()  # pixels must follow one another at one distance
    x_next, x0 = torch.empty_like(x), torch.empty_like(x)
    values = x.shape[1:].numel()
    rank, weight = rank_of(percentile, values)
    small, large = (0.0, 0.0) if log_variance is None else log_variance
    images = (x, out, previous, noise, x_next, x0)
    shape = (values, x.shape[2] * x.shape[3], out.stride(0), out.stride(1), out.stride(3))
    limit = (rank, weight, float("inf") if cap is None else cap)
    step = (*update, small, large - small)
    guided = prediction[2] != 1
    switches = {
        "GUIDED": guided,
        "RECALLS": previous is not None,
        "NOISY": QUIET if noise is None else FIXED if log_variance is None else LEARNED,
    }
    if kind == "dynamic" and values <= ONE_PROGRAM:
        row = _options("sampler_step_whole", x)
        whole_kernel[1, len(x)](*images, *shape, *prediction, *limit, *step, **switches, **row)
        return x_next, x0
    scale = None
    if kind == "dynamic":
        scale = _percentiles(x, out, x0, shape, prediction, guided, limit)
    row = _options("sampler_step_pointwise", x)
    pointwise_kernel[triton.cdiv(values, row["BLOCK"]), len(x)](
        *images, scale, *shape, *prediction, *step, KIND=KINDS[kind], **switches, **row
    )
    return x_next, x0


def _percentiles(
    x: Tensor,
    out: Tensor,
    raw: Tensor,
    shape: tuple[int, ...],
    prediction: Sequence[float],
    guided: bool,
    limit: tuple[int, float, float],
) -> Tensor:
    """Write the clean image before its threshold to `raw`; return the scale of each image, B."""
    images = len(x)
    histograms = torch.zeros(len(DIGITS), images, BINS, dtype=torch.int32, device=x.device)
    prefix, rank, larger = torch.empty(3, images, dtype=torch.int32, device=x.device)
    scale = torch.empty(images, dtype=torch.float32, device=x.device)
    for i, (histogram, (bits, shift)) in enumerate(zip(histograms, DIGITS, strict=True)):
        digit = {"BITS": bits, "SHIFT": shift, "BINS": BINS}
        if i == 0:
            row = _options("sampler_step_predict", x)
            predict_kernel[triton.cdiv(shape[0], row["BLOCK"]), images](
                x, out, raw, histogram, *shape, *prediction, GUIDED=guided, **digit, **row
            )
        else:
            row = _options("sampler_step_digit", x)
            digit_kernel[triton.cdiv(shape[0], row["BLOCK"]), images](
                raw, histogram, prefix, larger, shape[0], **digit, **row
            )
        ends = {"FIRST": i == 0, "LAST": shift == 0}
        row = _options("sampler_step_pick", x)
        pick_kernel[(images,)](
            histogram, prefix, rank, larger, scale, *limit, BITS=bits, BINS=BINS, **ends, **row
        )
    return scale


def _options(kernel: str, x: Tensor) -> dict[str, int]:
    """The launch configuration of a kernel on images x."""
    row = launch(kernel, x.device, values=x.shape[1:].numel())
    return {
        **row.blocks,
        "num_warps": row.num_warps,
        "num_stages": row.num_stages,
        "enable_fp_fusion": FUSION,
    }


_FULL = {"GUIDED": True, "RECALLS": True, "NOISY": LEARNED, "out_pixel": 1}
_ABSENT = dict.fromkeys(("PREVIOUS", "NOISE", "SCALE"))
_BARE = {"GUIDED": False, "RECALLS": False, "NOISY": QUIET, **_ABSENT}


def variants(table: Table) -> Iterator[Variant]:
    """Describe every row of the table with everything switched on, and with nothing."""
    digits = [{"BITS": bits, "SHIFT": shift, "BINS": BINS} for bits, shift in DIGITS]
    picks = [
        {"BITS": bits, "BINS": BINS, "FIRST": bits == DIGITS[0][0], "LAST": shift == 0}
        for bits, shift in DIGITS
    ]
    kernels: dict[str, tuple[Any, Sequence[Mapping[str, Any]]]] = {
        "sampler_step_pointwise": (pointwise_kernel, [{**_FULL, "KIND": 2}, {**_BARE, "KIND": 0}]),
        "sampler_step_whole": (whole_kernel, [_FULL, _BARE]),
        "sampler_step_predict": (predict_kernel, [{**s, **digits[0]} for s in (_FULL, _BARE)]),
        "sampler_step_digit": (digit_kernel, digits[1:]),
        "sampler_step_pick": (pick_kernel, picks),
    }
    for name, (kernel, all_switches) in kernels.items():
        for row in table.rows(name):
            for i, switches in enumerate(all_switches):
                yield _variant(f"{name}/{i}", kernel, row.launch, switches)


def _variant(name: str, kernel: Any, row: Launch, switches: Mapping[str, Any]) -> Variant:
    given = {**switches, **row.blocks}
    parameters = list(signature(kernel.fn).parameters)
    blocks = "".join(f"/{key}{value}" for key, value in row.blocks.items())
    return Variant(
        name=f"{name}{blocks}/w{row.num_warps}",
        kernel=kernel,
        arguments={p: _TYPES.get(p, "fp32") for p in parameters if p not in given},
        constants={p: given[p] for p in parameters if p in given},
        multiples=frozenset({"n", "pixels", "out_image"} & set(parameters)),
        num_warps=row.num_warps,
        num_stages=row.num_stages,
        fusion=FUSION,
    )


# Types of the arguments that are not float32 numbers, for compiling ahead of time.
_TYPES = {
    **dict.fromkeys(("X", "PREVIOUS", "NOISE", "X_NEXT", "X0", "RAW", "SCALE"), "*fp32"),
    **dict.fromkeys(("HISTOGRAM", "PREFIX", "RANK", "LARGER"), "*i32"),
    **dict.fromkeys(("n", "pixels", "out_image", "out_channel", "out_pixel", "rank"), "i32"),
    "OUT": "*bf16",
}
