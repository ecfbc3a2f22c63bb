"""Triton backward pass of GroupNorm with FiLM and activation.

Three launches: the sums of dz and of dz times the normalised image, per channel and slice; what
follows from them, the gradients of the vectors and two numbers per group; the gradient of the
image. With h the normalised image, s a group's 1 / sqrt(var + eps) and g the gain, N values in a
group: dx = s (g dz - sum(g dz) / N - h sum(g dz h) / N). A small image takes one launch.

Inside a kernel: as in `group_norm_film_silu`, and `DY DX DSKIP` gradients of the images; `TERMS`
B G 2, the two sums over N; `DWEIGHT DBIAS` B C in fp32, summed over the batch afterwards.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from cascade_kernels.triton_code.group_norm_film_silu_call import channels_last, options, prepare
from cascade_kernels.triton_code.group_norm_film_silu_gradients import (
    gradient_sums,
    write_gradient,
    write_vectors,
)
from cascade_kernels.triton_code.group_norm_film_silu_tiles import affine, group_sum


@triton.jit
def group_norm_film_silu_backward_reduce(
    DY: tl.tensor,
    X: tl.tensor,
    SKIP: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    SCALE: tl.tensor,
    SHIFT: tl.tensor,
    MEAN: tl.tensor,
    RSTD: tl.tensor,
    scale_b: tl.tensor,
    shift_b: tl.tensor,
    hw: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    group: tl.tensor,
    slice_rows: tl.tensor,
    PARTIAL: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Write the sums of dz and of dz times the normalised image over one slice of one image."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * slice_rows
    last = tl.minimum(first + slice_rows, hw)
    end = c1 + c2
    of = b * (end // group) + c // group
    mean = tl.load(MEAN + of, mask=c < end, other=0.0)
    rstd = tl.load(RSTD + of, mask=c < end, other=0.0)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
    plain, weighted = gradient_sums(
        DY, X, SKIP, b * hw, first, last, c, end, mean, rstd, gain, offset, c1, c2,
        SKIP_SCALE, ACTIVATION, BLOCK_HW, STAGES,
    )  # fmt: skip
    at = PARTIAL + (b * tl.num_programs(1) + tl.program_id(1)) * 2 * end + c
    tl.store(at, plain, mask=c < end)
    tl.store(at + end, weighted, mask=c < end)


@triton.jit
def group_norm_film_silu_backward_finalize(
    PARTIAL: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    SCALE: tl.tensor,
    SHIFT: tl.tensor,
    scale_b: tl.tensor,
    shift_b: tl.tensor,
    hw: tl.tensor,
    group: tl.tensor,
    slices: tl.tensor,
    TERMS: tl.tensor,
    DWEIGHT: tl.tensor,
    DBIAS: tl.tensor,
    DSCALE: tl.tensor,
    DSHIFT: tl.tensor,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Combine the sums of one group's channels and slices; write its vectors and its terms."""
    g, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.num_programs(0) * group
    total_plain = tl.zeros([BLOCK_C], tl.float32)
    total_weighted = tl.zeros([BLOCK_C], tl.float32)
    end = (g + 1) * group
    for start in range(0, group, BLOCK_C):
        c = g * group + start + tl.arange(0, BLOCK_C)
        plain = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
        weighted = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
        for first in range(0, slices, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            at = PARTIAL + (b * slices + s)[:, None] * 2 * channels + c[None, :]
            inside = (s < slices)[:, None] & (c < end)[None, :]
            plain += tl.load(at, mask=inside, other=0.0)
            weighted += tl.load(at + channels, mask=inside, other=0.0)
        sum_plain, sum_weighted = tl.sum(plain, 0), tl.sum(weighted, 0)
        write_vectors(
            WEIGHT, BIAS, SCALE, scale_b, DWEIGHT, DBIAS, DSCALE, DSHIFT,
            b, c, end, channels, sum_plain, sum_weighted,
        )  # fmt: skip
        gain, _ = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
        total_plain += gain * sum_plain
        total_weighted += gain * sum_weighted
    at = TERMS + (b * tl.num_programs(0) + g) * 2
    tl.store(at, tl.sum(total_plain, 0) / hw / group)
    tl.store(at + 1, tl.sum(total_weighted, 0) / hw / group)


@triton.jit
def group_norm_film_silu_backward_apply(
    DY: tl.tensor,
    X: tl.tensor,
    SKIP: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    SCALE: tl.tensor,
    SHIFT: tl.tensor,
    MEAN: tl.tensor,
    RSTD: tl.tensor,
    TERMS: tl.tensor,
    scale_b: tl.tensor,
    shift_b: tl.tensor,
    hw: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    group: tl.tensor,
    slice_rows: tl.tensor,
    DX: tl.tensor,
    DSKIP: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Write the gradient of BLOCK_C channels of one slice of one image."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * slice_rows
    last = tl.minimum(first + slice_rows, hw)
    end = c1 + c2
    of = b * (end // group) + c // group
    mean = tl.load(MEAN + of, mask=c < end, other=0.0)
    rstd = tl.load(RSTD + of, mask=c < end, other=0.0)
    plain = tl.load(TERMS + 2 * of, mask=c < end, other=0.0)
    weighted = tl.load(TERMS + 2 * of + 1, mask=c < end, other=0.0)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
    write_gradient(
        DY, X, SKIP, b * hw, first, last, c, end, mean, rstd, gain, offset, plain, weighted,
        c1, c2, DX, DSKIP, SKIP_SCALE, ACTIVATION, BLOCK_HW, STAGES,
    )  # fmt: skip


@triton.jit
def group_norm_film_silu_backward_one_pass(
    DY: tl.tensor,
    X: tl.tensor,
    SKIP: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    SCALE: tl.tensor,
    SHIFT: tl.tensor,
    MEAN: tl.tensor,
    RSTD: tl.tensor,
    scale_b: tl.tensor,
    shift_b: tl.tensor,
    hw: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    group: tl.tensor,
    DX: tl.tensor,
    DSKIP: tl.tensor,
    DWEIGHT: tl.tensor,
    DBIAS: tl.tensor,
    DSCALE: tl.tensor,
    DSHIFT: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Do all of it for WIDTH channels, which are whole groups, of one image."""
    c = tl.program_id(0) * WIDTH + tl.arange(0, BLOCK_C)
    b = tl.program_id(1).to(tl.int64)
    channels = c1 + c2
    end = tl.minimum((tl.program_id(0) + 1) * WIDTH, channels)
    of = b * (channels // group) + c // group
    mean = tl.load(MEAN + of, mask=c < end, other=0.0)
    rstd = tl.load(RSTD + of, mask=c < end, other=0.0)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
    plain, weighted = gradient_sums(
        DY, X, SKIP, b * hw, 0, hw, c, end, mean, rstd, gain, offset, c1, c2,
        SKIP_SCALE, ACTIVATION, BLOCK_HW, STAGES,
    )  # fmt: skip
    write_vectors(
        WEIGHT, BIAS, SCALE, scale_b, DWEIGHT, DBIAS, DSCALE, DSHIFT,
        b, c, end, channels, plain, weighted,
    )  # fmt: skip
    plain = group_sum(gain * plain, group) / hw / group
    weighted = group_sum(gain * weighted, group) / hw / group
    write_gradient(
        DY, X, SKIP, b * hw, 0, hw, c, end, mean, rstd, gain, offset, plain, weighted,
        c1, c2, DX, DSKIP, SKIP_SCALE, ACTIVATION, BLOCK_HW, STAGES,
    )  # fmt: skip


def backward(
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
    """Launch the backward kernels; as `cascade::group_norm_film_silu_backward`."""
    call = prepare(x, skip, weight, bias, scale, shift, mean.shape[1])
    # A gradient may arrive in another layout than the output had, from compiled graphs above all.
    inputs = (channels_last(dy), call.x, call.skip, *call.film, mean, rstd)
    sizes = (*call.strides, call.pixels, call.c1, call.c2, call.group)
    fixed = {"SKIP_SCALE": skip_scale, "ACTIVATION": activation}
    last = torch.channels_last
    dx = torch.empty_like(x, memory_format=last)
    dskip = None if skip is None else torch.empty_like(skip, memory_format=last)
    dscale, dshift = (None if t is None else t.new_empty(t.shape) for t in (scale, shift))
    dweight, dbias = x.new_empty(2, call.batch, call.channels, dtype=torch.float32)
    gradients = (dweight, dbias, dscale, dshift)
    if call.one_pass:
        chosen = call.launch("backward_one_pass")
        grid, width = call.whole_groups(chosen)
        group_norm_film_silu_backward_one_pass[grid](
            *inputs, *sizes, dx, dskip, *gradients, **fixed, WIDTH=width, **options(chosen)
        )
    else:
        chosen = call.launch("backward_reduce")
        grid, rows = call.slices(chosen)
        partial = x.new_empty(call.batch, grid[1], 2, call.channels, dtype=torch.float32)
        group_norm_film_silu_backward_reduce[grid](
            *inputs, *sizes, rows, partial, **fixed, **options(chosen)
        )
        chosen = call.launch("backward_finalize")
        terms = x.new_empty(call.batch, call.groups, 2, dtype=torch.float32)
        group_norm_film_silu_backward_finalize[(call.groups, call.batch)](
            partial, *call.film, *call.strides, call.pixels, call.group, grid[1],
            terms, *gradients, **chosen.blocks, num_warps=chosen.num_warps,
        )  # fmt: skip
        chosen = call.launch("backward_apply")
        grid, rows = call.slices(chosen)
        group_norm_film_silu_backward_apply[grid](
            *inputs, terms, *sizes, rows, dx, dskip, **fixed, **options(chosen)
        )
    return (
        dx,
        x.new_empty(0) if dskip is None else dskip,
        dweight.sum(0).to(weight.dtype),
        dbias.sum(0).to(bias.dtype),
        x.new_empty(0) if dscale is None else dscale,
        x.new_empty(0) if dshift is None else dshift,
    )


KERNELS = (
    group_norm_film_silu_backward_reduce,
    group_norm_film_silu_backward_finalize,
    group_norm_film_silu_backward_apply,
    group_norm_film_silu_backward_one_pass,
)
