"""Triton forward pass of GroupNorm with FiLM and activation: tiles, kernels and their launches.

Three launches: statistics of every channel over slices of an image; their combination per group
(Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance"); the affine map and the
activation. A small image takes one launch: a program owns whole groups and reads them twice, the
second time when they are small enough to be in a cache still, or once (`slab`). There are no atomic
additions: the order of every sum follows from the shapes and the number of multiprocessors.

Shapes: as in `tiles`; `PARTIAL` B slices 3 C. `slice_rows` pixels of a slice; `start` the index of
an image's first pixel in the batch, int64; `first last` a range of pixels of the image.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from cascade_kernels.dispatch import require
from cascade_kernels.group_norm_film_silu.inputs import Inputs, check
from cascade_kernels.group_norm_film_silu.plan import Plan, empty_channels_last, laid_out
from cascade_kernels.group_norm_film_silu.slab import group_norm_film_silu_slab
from cascade_kernels.group_norm_film_silu.tiles import (
    affine,
    group_sum,
    load_tile,
    moments,
    owned,
    store_activated,
)
from cascade_kernels.launching import Plans, Program, on_its_device


@triton.jit
def channel_statistics(
    X: tl.tensor, SKIP: tl.tensor, start: tl.tensor, first: tl.tensor, last: tl.tensor,
    c: tl.tensor, stop: tl.tensor, c1: tl.tensor, c2: tl.tensor,
    SKIP_SCALE: tl.constexpr, BLOCK_HW: tl.constexpr, STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return pivot, shift and the sum of squared deviations of every channel over some pixels.

    The mean is pivot + shift; added up, it would lose the shift's last digits far from zero.
    """
    one = tl.arange(0, 1)
    # Shifted by the range's first pixel, sums of squares keep their digits far from zero.
    pivot = load_tile(X, SKIP, start + first, one, (one < 1)[:, None], c, stop, c1, c2, SKIP_SCALE)
    rows = tl.arange(0, BLOCK_HW)
    total = tl.zeros([BLOCK_HW, c.shape[0]], tl.float32)
    square = tl.zeros([BLOCK_HW, c.shape[0]], tl.float32)
    for row in tl.range(first, last, BLOCK_HW, num_stages=STAGES):
        inside = (row + rows < last)[:, None]
        x = load_tile(X, SKIP, start + row, rows, inside, c, stop, c1, c2, SKIP_SCALE)
        deviation = tl.where(inside, x - pivot, 0.0)
        total += deviation
        square += deviation * deviation
    shift = tl.sum(total, 0) / (last - first)
    square = tl.sum(square, 0) - shift * shift * (last - first)
    return tl.sum(pivot, 0), shift, square


@triton.jit
def write_activated(
    X: tl.tensor, SKIP: tl.tensor, start: tl.tensor, first: tl.tensor, last: tl.tensor,
    c: tl.tensor, begin: tl.tensor, end: tl.tensor, stop: tl.tensor,
    mean: tl.tensor, factor: tl.tensor, offset: tl.tensor,
    c1: tl.tensor, c2: tl.tensor, Y: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, BLOCK_HW: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Write activation((x - mean) * factor + offset) over a range of pixels."""
    rows = tl.arange(0, BLOCK_HW)
    for row in tl.range(first, last, BLOCK_HW, num_stages=STAGES):
        inside = (row + rows < last)[:, None]
        x = load_tile(X, SKIP, start + row, rows, inside, c, stop, c1, c2, SKIP_SCALE)
        store_activated(
            x, start + row, rows, inside, c, begin, end, mean, factor, offset, c1 + c2, Y,
            ACTIVATION, WIDTH,
        )  # fmt: skip


@triton.jit
def group_norm_film_silu_statistics(
    X: tl.tensor, SKIP: tl.tensor,
    hw: tl.tensor, c1: tl.tensor, c2: tl.tensor, slice_rows: tl.tensor, PARTIAL: tl.tensor,
    SKIP_SCALE: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
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
    PARTIAL: tl.tensor, hw: tl.tensor, group: tl.tensor, slices: tl.tensor, slice_rows: tl.tensor,
    MEAN: tl.tensor, RSTD: tl.tensor,
    EPS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
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
        address = at + i // group * 3 * channels + i % group
        pivot = tl.load(address, mask=inside, other=origin)
        shift = tl.load(address + channels, mask=inside, other=0.0)
        total += ((pivot - origin) + shift) * pixels
    mean = origin + tl.sum(total, 0) / hw / group
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, slices * group, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < slices * group
        pixels = tl.minimum(slice_rows, hw - i // group * slice_rows)
        address = at + i // group * 3 * channels + i % group
        pivot = tl.load(address, mask=inside, other=mean)
        deviation = (pivot - mean) + tl.load(address + channels, mask=inside, other=0.0)
        square = tl.load(address + 2 * channels, mask=inside, other=0.0)
        total += square + deviation * deviation * pixels
    tl.store(MEAN + b * tl.num_programs(0) + g, mean)
    tl.store(RSTD + b * tl.num_programs(0) + g, tl.rsqrt(tl.sum(total, 0) / hw / group + EPS))


@triton.jit
def group_norm_film_silu_apply(
    X: tl.tensor, SKIP: tl.tensor, WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor,
    SHIFT: tl.tensor, MEAN: tl.tensor, RSTD: tl.tensor, scale_b: tl.tensor, shift_b: tl.tensor,
    hw: tl.tensor, c1: tl.tensor, c2: tl.tensor, group: tl.tensor, slice_rows: tl.tensor,
    Y: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Write BLOCK_C channels of one slice of one image's output."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * slice_rows
    last = tl.minimum(first + slice_rows, hw)
    end = c1 + c2
    mean, rstd = moments(MEAN, RSTD, b, c, end, end, group)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
    write_activated(
        X, SKIP, b * hw, first, last, c, 0, end, end, mean, rstd * gain, offset, c1, c2, Y,
        SKIP_SCALE, ACTIVATION, BLOCK_C, BLOCK_HW, STAGES,
    )  # fmt: skip


@triton.jit
def group_norm_film_silu_one_pass(
    X: tl.tensor, SKIP: tl.tensor, WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor,
    SHIFT: tl.tensor, scale_b: tl.tensor, shift_b: tl.tensor, hw: tl.tensor, c1: tl.tensor,
    c2: tl.tensor, group: tl.tensor, Y: tl.tensor, MEAN: tl.tensor, RSTD: tl.tensor,
    SKIP_SCALE: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr, GROUPS: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Do all of it for WIDTH channels, which are whole groups, of one image."""
    c, begin, end, stop = owned(c1 + c2, WIDTH, BLOCK_C)
    b = tl.program_id(1).to(tl.int64)
    pivot, shift, square = channel_statistics(
        X, SKIP, b * hw, 0, hw, c, stop, c1, c2, SKIP_SCALE, BLOCK_HW, STAGES
    )
    mean = group_sum(pivot + shift, c, begin, group, GROUPS) / group
    # Far from zero the sum of means was rounded coarsely, that of their differences is not.
    mean += group_sum((pivot - mean) + shift, c, begin, group, GROUPS) / group
    deviation = (pivot - mean) + shift
    variance = group_sum(square / hw + deviation * deviation, c, begin, group, GROUPS) / group
    rstd = tl.rsqrt(variance + EPS)
    of = b * ((c1 + c2) // group) + c // group
    first = (c % group == 0) & (c >= begin) & (c < end)
    tl.store(MEAN + of, mean, mask=first)
    tl.store(RSTD + of, rstd, mask=first)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, stop)
    write_activated(
        X, SKIP, b * hw, 0, hw, c, begin, end, stop, mean, rstd * gain, offset, c1, c2, Y,
        SKIP_SCALE, ACTIVATION, WIDTH, BLOCK_HW, STAGES,
    )  # fmt: skip


class _Launches:
    """The launches of one kind of call: one, or three."""

    def __init__(self, inputs: Inputs) -> None:
        require("group_norm_film_silu", inputs.x)
        check(inputs)
        given = laid_out(inputs)
        self.ready = all(one is other for one, other in zip(given, inputs, strict=True))
        plan = Plan.of(given)
        batch, _, height, width = given.x.shape
        self.shape = (batch, plan.channels, height, width)
        self.statistics = (batch, given.groups)
        fixed = {
            "SKIP_SCALE": given.skip_scale,
            "EPS": given.eps,
            "ACTIVATION": given.activation,
        }
        self.sizes = plan.sizes
        self.whole: Program | None = None
        if plan.one_pass:
            self.whole = plan.one_launch(
                group_norm_film_silu_slab, group_norm_film_silu_one_pass, fixed
            )
        else:
            self._three(plan, fixed)

    def _three(self, plan: Plan, fixed: dict[str, Any]) -> None:
        chosen = plan.launch("statistics")
        grid, rows = plan.slices(chosen)
        self.partial = (plan.batch, grid[1], 3, plan.channels)
        self.measure = Program(group_norm_film_silu_statistics, grid, fixed, chosen)
        self.measured = (*plan.sizes[2:5], rows)
        chosen = plan.launch("finalize")
        self.combine = Program(group_norm_film_silu_finalize, self.statistics[::-1], fixed, chosen)
        self.combined = (plan.pixels, plan.group, grid[1], rows)
        chosen = plan.launch("apply")
        grid, rows = plan.slices(chosen)
        self.apply = Program(group_norm_film_silu_apply, grid, fixed, chosen)
        self.applied = (*plan.sizes, rows)


_PLANS = Plans(_Launches)


@on_its_device
def forward(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, B C H W, and the mean and the reciprocal deviation of every group, B G.

    Raises:
        ValueError: the inputs do not fit together.
        RuntimeError: there is no launch configuration for their shape.
    """
    plan = _PLANS.of(inputs)
    if not plan.ready:
        return forward(laid_out(inputs))
    x, skip, *film = inputs[:6]
    y = empty_channels_last(x, plan.shape)
    mean = x.new_empty(plan.statistics, dtype=torch.float32)
    rstd = torch.empty_like(mean)
    if plan.whole is not None:
        plan.whole(x, skip, *film, *plan.sizes, y, mean, rstd)
        return y, mean, rstd
    partial = x.new_empty(plan.partial, dtype=torch.float32)
    plan.measure(x, skip, *plan.measured, partial)
    plan.combine(partial, *plan.combined, mean, rstd)
    plan.apply(x, skip, *film, mean, rstd, *plan.applied, y)
    return y, mean, rstd
