"""Triton forward pass of GroupNorm with FiLM and activation.

Three launches: statistics of every channel over slices of an image; their combination per group
(Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance"); the affine map and the
activation. A small image takes one launch: a program owns whole groups and reads them twice, the
second time when they are small enough to be in a cache still. There are no atomic additions: the
order of every sum follows from the shapes and the number of multiprocessors.

Inside a kernel: as in `group_norm_film_silu_tiles`, and `hw` pixels of an image; `group` channels
of a group; `slice_rows` pixels of a slice; `MEAN RSTD` B G; `PARTIAL` B slices 3 C.
"""

from collections.abc import Iterator

import torch
import triton
from torch import Tensor
from triton import language as tl

from cascade_kernels.launch_table import Table
from cascade_kernels.triton_code import group_norm_film_silu_backward as backward_pass
from cascade_kernels.triton_code.group_norm_film_silu_call import options, prepare
from cascade_kernels.triton_code.group_norm_film_silu_tiles import (
    affine,
    channel_statistics,
    group_sum,
    write_activated,
)
from cascade_kernels.triton_code.group_norm_film_silu_variants import describe
from cascade_kernels.variant import Variant


@triton.jit
def group_norm_film_silu_statistics(
    X: tl.tensor,
    SKIP: tl.tensor,
    hw: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    slice_rows: tl.tensor,
    PARTIAL: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Write the statistics of BLOCK_C channels over one slice of one image."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * slice_rows
    last = tl.minimum(first + slice_rows, hw)
    pivot, shift, square = channel_statistics(
        X, SKIP, b * hw, first, last, c, c1 + c2, c1, c2, SKIP_SCALE, BLOCK_HW, STAGES
    )
    at = PARTIAL + (b * tl.num_programs(1) + tl.program_id(1)) * 3 * (c1 + c2) + c
    tl.store(at, pivot, mask=c < c1 + c2)
    tl.store(at + (c1 + c2), shift, mask=c < c1 + c2)
    tl.store(at + 2 * (c1 + c2), square, mask=c < c1 + c2)


@triton.jit
def group_norm_film_silu_finalize(
    PARTIAL: tl.tensor,
    hw: tl.tensor,
    group: tl.tensor,
    slices: tl.tensor,
    slice_rows: tl.tensor,
    MEAN: tl.tensor,
    RSTD: tl.tensor,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Combine the statistics of one group's channels and slices."""
    g, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.num_programs(0) * group
    at = PARTIAL + b * slices * 3 * channels + g * group
    origin = tl.load(at)  # sums of differences from it keep their digits far from zero
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, slices * group, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < slices * group
        pixels = tl.minimum(slice_rows, hw - i // group * slice_rows)
        place = at + i // group * 3 * channels + i % group
        pivot = tl.load(place, mask=inside, other=origin)
        shift = tl.load(place + channels, mask=inside, other=0.0)
        total += ((pivot - origin) + shift) * pixels
    mean = origin + tl.sum(total, 0) / hw / group
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, slices * group, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < slices * group
        pixels = tl.minimum(slice_rows, hw - i // group * slice_rows)
        place = at + i // group * 3 * channels + i % group
        pivot = tl.load(place, mask=inside, other=mean)
        deviation = (pivot - mean) + tl.load(place + channels, mask=inside, other=0.0)
        square = tl.load(place + 2 * channels, mask=inside, other=0.0)
        total += square + deviation * deviation * pixels
    tl.store(MEAN + b * tl.num_programs(0) + g, mean)
    tl.store(RSTD + b * tl.num_programs(0) + g, tl.rsqrt(tl.sum(total, 0) / hw / group + EPS))


@triton.jit
def group_norm_film_silu_apply(
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
    Y: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Write BLOCK_C channels of one slice of one image's output."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * slice_rows
    last = tl.minimum(first + slice_rows, hw)
    end = c1 + c2
    of = b * (end // group) + c // group
    mean = tl.load(MEAN + of, mask=c < end, other=0.0)
    rstd = tl.load(RSTD + of, mask=c < end, other=0.0)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
    write_activated(
        X, SKIP, b * hw, first, last, c, end, mean, rstd * gain, offset, c1, c2, Y,
        SKIP_SCALE, ACTIVATION, BLOCK_HW, STAGES,
    )  # fmt: skip


@triton.jit
def group_norm_film_silu_one_pass(
    X: tl.tensor,
    SKIP: tl.tensor,
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    SCALE: tl.tensor,
    SHIFT: tl.tensor,
    scale_b: tl.tensor,
    shift_b: tl.tensor,
    hw: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    group: tl.tensor,
    Y: tl.tensor,
    MEAN: tl.tensor,
    RSTD: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    EPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Do all of it for WIDTH channels, which are whole groups, of one image."""
    lanes = tl.arange(0, BLOCK_C)
    c = tl.program_id(0) * WIDTH + lanes
    b = tl.program_id(1).to(tl.int64)
    end = tl.minimum((tl.program_id(0) + 1) * WIDTH, c1 + c2)
    pivot, shift, square = channel_statistics(
        X, SKIP, b * hw, 0, hw, c, end, c1, c2, SKIP_SCALE, BLOCK_HW, STAGES
    )
    mean = group_sum(pivot + shift, group) / group
    # Far from zero the sum of means was rounded coarsely, that of their differences is not.
    mean += group_sum((pivot - mean) + shift, group) / group
    deviation = (pivot - mean) + shift
    variance = group_sum(square / hw + deviation * deviation, group) / group
    rstd = tl.rsqrt(variance + EPS)
    of = b * ((c1 + c2) // group) + c // group
    tl.store(MEAN + of, mean, mask=(c % group == 0) & (c < end))
    tl.store(RSTD + of, rstd, mask=(c % group == 0) & (c < end))
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
    write_activated(
        X, SKIP, b * hw, 0, hw, c, end, mean, rstd * gain, offset, c1, c2, Y,
        SKIP_SCALE, ACTIVATION, BLOCK_HW, STAGES,
    )  # fmt: skip


def forward(
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
    """Launch the forward kernels; arguments and results as of `cascade::group_norm_film_silu`."""
    call = prepare(x, skip, weight, bias, scale, shift, groups)
    y = call.x.new_empty(call.batch, *x.shape[2:], call.channels).permute(0, 3, 1, 2)
    mean = x.new_empty(call.batch, groups, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    film, sizes = call.film, (*call.strides, call.pixels, call.c1, call.c2, call.group)
    if call.one_pass:
        chosen = call.launch("one_pass")
        grid, width = call.whole_groups(chosen)
        group_norm_film_silu_one_pass[grid](
            call.x, call.skip, *film, *sizes, y, mean, rstd, SKIP_SCALE=skip_scale, EPS=eps,
            ACTIVATION=activation, WIDTH=width, **options(chosen),
        )  # fmt: skip
        return y, mean, rstd
    chosen = call.launch("statistics")
    grid, rows = call.slices(chosen)
    partial = x.new_empty(call.batch, grid[1], 3, call.channels, dtype=torch.float32)
    group_norm_film_silu_statistics[grid](
        call.x, call.skip, call.pixels, call.c1, call.c2, rows, partial,
        SKIP_SCALE=skip_scale, **options(chosen),
    )  # fmt: skip
    chosen = call.launch("finalize")
    group_norm_film_silu_finalize[(groups, call.batch)](
        partial, call.pixels, call.group, grid[1], rows, mean, rstd, EPS=eps,
        **chosen.blocks, num_warps=chosen.num_warps,
    )  # fmt: skip
    chosen = call.launch("apply")
    grid, rows = call.slices(chosen)
    group_norm_film_silu_apply[grid](
        call.x, call.skip, *film, mean, rstd, *sizes, rows, y,
        SKIP_SCALE=skip_scale, ACTIVATION=activation, **options(chosen),
    )  # fmt: skip
    return y, mean, rstd


def variants(table: Table) -> Iterator[Variant]:
    """Describe the compilations of the operation's kernels that a launch table asks for."""
    yield from describe(
        table,
        (
            group_norm_film_silu_statistics,
            group_norm_film_silu_finalize,
            group_norm_film_silu_apply,
            group_norm_film_silu_one_pass,
            *backward_pass.KERNELS,
        ),
    )
