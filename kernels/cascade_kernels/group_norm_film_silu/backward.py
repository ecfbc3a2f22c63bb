"""Triton backward pass of GroupNorm with FiLM and activation: tiles, kernels and their launches.

Three launches: the sums of dz and of dz times the centred image, per channel and slice; what
follows from them, the gradients of the vectors and two numbers per group; the gradient of the
image. With h the normalised image, s a group's 1 / sqrt(var + eps) and g the gain, N values in a
group: dx = s (g dz - sum(g dz) / N - h sum(g dz h) / N). A small image takes one launch.

Shapes: as in `tiles`; `PARTIAL` B slices 2 C; `TERMS` B G 2, the two sums over N.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from cascade_kernels.group_norm_film_silu.inputs import Call
from cascade_kernels.group_norm_film_silu.plan import (
    Plan,
    channels_last,
    empty_channels_last,
    laid_out,
)
from cascade_kernels.group_norm_film_silu.slab import group_norm_film_silu_backward_slab
from cascade_kernels.group_norm_film_silu.tiles import (
    affine,
    gradient_tile,
    group_sum,
    moments,
    owned,
    store_gradient,
    write_vectors,
)
from cascade_kernels.launching import Plans, Program, on_its_device


@triton.jit
def gradient_sums(
    DY: tl.tensor, X: tl.tensor, SKIP: tl.tensor,
    start: tl.tensor, first: tl.tensor, last: tl.tensor, c: tl.tensor, stop: tl.tensor,
    mean: tl.tensor, factor: tl.tensor, offset: tl.tensor, c1: tl.tensor, c2: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_HW: tl.constexpr,
    STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return, per channel, the sums of dz and of dz times the centred image."""
    rows = tl.arange(0, BLOCK_HW)
    plain = tl.zeros([BLOCK_HW, c.shape[0]], tl.float32)
    weighted = tl.zeros([BLOCK_HW, c.shape[0]], tl.float32)
    for row in tl.range(first, last, BLOCK_HW, num_stages=STAGES):
        centred, dz = gradient_tile(
            DY, X, SKIP, start + row, rows, (row + rows < last)[:, None], c, stop,
            mean, factor, offset, c1, c2, SKIP_SCALE, ACTIVATION,
        )  # fmt: skip
        plain += dz
        weighted += dz * centred
    return tl.sum(plain, 0), tl.sum(weighted, 0)


@triton.jit
def write_gradient(
    DY: tl.tensor, X: tl.tensor, SKIP: tl.tensor,
    start: tl.tensor, first: tl.tensor, last: tl.tensor,
    c: tl.tensor, begin: tl.tensor, end: tl.tensor, stop: tl.tensor,
    mean: tl.tensor, rstd: tl.tensor, gain: tl.tensor, offset: tl.tensor,
    plain: tl.tensor, weighted: tl.tensor,
    c1: tl.tensor, c2: tl.tensor, DX: tl.tensor, DSKIP: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, BLOCK_HW: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradient of the stacked images over a range of pixels, each part to its own."""
    rows = tl.arange(0, BLOCK_HW)
    factor, plain, weighted = rstd * gain, rstd * plain, rstd * rstd * weighted
    for row in tl.range(first, last, BLOCK_HW, num_stages=STAGES):
        inside = (row + rows < last)[:, None]
        centred, dz = gradient_tile(
            DY, X, SKIP, start + row, rows, inside, c, stop,
            mean, factor, offset, c1, c2, SKIP_SCALE, ACTIVATION,
        )  # fmt: skip
        store_gradient(
            centred, dz, start + row, rows, inside, c, begin, end, factor, plain, weighted,
            c1, c2, DX, DSKIP, SKIP_SCALE, WIDTH,
        )  # fmt: skip


@triton.jit
def group_norm_film_silu_backward_reduce(
    DY: tl.tensor, X: tl.tensor, SKIP: tl.tensor,
    WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor, SHIFT: tl.tensor,
    MEAN: tl.tensor, RSTD: tl.tensor, scale_b: tl.tensor, shift_b: tl.tensor, hw: tl.tensor,
    c1: tl.tensor, c2: tl.tensor, group: tl.tensor, slice_rows: tl.tensor, PARTIAL: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Write the sums of dz and of dz times the centred image over one slice of one image."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * slice_rows
    last = tl.minimum(first + slice_rows, hw)
    end = c1 + c2
    mean, rstd = moments(MEAN, RSTD, b, c, end, end, group)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
    plain, weighted = gradient_sums(
        DY, X, SKIP, b * hw, first, last, c, end, mean, rstd * gain, offset, c1, c2,
        SKIP_SCALE, ACTIVATION, BLOCK_HW, STAGES,
    )  # fmt: skip
    at = PARTIAL + (b * tl.num_programs(1) + tl.program_id(1)) * 2 * end + c
    tl.store(at, plain, mask=c < end)
    tl.store(at + end, weighted, mask=c < end)


@triton.jit
def group_norm_film_silu_backward_finalize(
    PARTIAL: tl.tensor, WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor, SHIFT: tl.tensor,
    RSTD: tl.tensor, scale_b: tl.tensor, shift_b: tl.tensor, hw: tl.tensor, group: tl.tensor,
    slices: tl.tensor, TERMS: tl.tensor, DWEIGHT: tl.tensor, DBIAS: tl.tensor, DSCALE: tl.tensor,
    DSHIFT: tl.tensor,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """Combine the sums of one group's channels and slices; write its vectors and its terms."""
    g, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.num_programs(0) * group
    total_plain = tl.zeros([BLOCK_C], tl.float32)
    total_weighted = tl.zeros([BLOCK_C], tl.float32)
    end = (g + 1) * group
    rstd = tl.load(RSTD + b * tl.num_programs(0) + g)
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
        sum_plain, sum_weighted = tl.sum(plain, 0), rstd * tl.sum(weighted, 0)
        write_vectors(
            WEIGHT, BIAS, SCALE, scale_b, DWEIGHT, DBIAS, DSCALE, DSHIFT,
            b, c, 0, end, end, channels, sum_plain, sum_weighted,
        )  # fmt: skip
        gain, _ = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
        total_plain += gain * sum_plain
        total_weighted += gain * sum_weighted
    at = TERMS + (b * tl.num_programs(0) + g) * 2
    tl.store(at, tl.sum(total_plain, 0) / hw / group)
    tl.store(at + 1, tl.sum(total_weighted, 0) / hw / group)


@triton.jit
def group_norm_film_silu_backward_apply(
    DY: tl.tensor, X: tl.tensor, SKIP: tl.tensor,
    WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor, SHIFT: tl.tensor,
    MEAN: tl.tensor, RSTD: tl.tensor, TERMS: tl.tensor, scale_b: tl.tensor, shift_b: tl.tensor,
    hw: tl.tensor, c1: tl.tensor, c2: tl.tensor, group: tl.tensor, slice_rows: tl.tensor,
    DX: tl.tensor, DSKIP: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_HW: tl.constexpr,
    BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradient of BLOCK_C channels of one slice of one image."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * slice_rows
    last = tl.minimum(first + slice_rows, hw)
    end = c1 + c2
    mean, rstd = moments(MEAN, RSTD, b, c, end, end, group)
    of = b * (end // group) + c // group
    plain = tl.load(TERMS + 2 * of, mask=c < end, other=0.0)
    weighted = tl.load(TERMS + 2 * of + 1, mask=c < end, other=0.0)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, end)
    write_gradient(
        DY, X, SKIP, b * hw, first, last, c, 0, end, end, mean, rstd, gain, offset, plain, weighted,
        c1, c2, DX, DSKIP, SKIP_SCALE, ACTIVATION, BLOCK_C, BLOCK_HW, STAGES,
    )  # fmt: skip


@triton.jit
def group_norm_film_silu_backward_one_pass(
    DY: tl.tensor, X: tl.tensor, SKIP: tl.tensor,
    WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor, SHIFT: tl.tensor,
    MEAN: tl.tensor, RSTD: tl.tensor, scale_b: tl.tensor, shift_b: tl.tensor,
    hw: tl.tensor, c1: tl.tensor, c2: tl.tensor, group: tl.tensor, DX: tl.tensor, DSKIP: tl.tensor,
    DWEIGHT: tl.tensor, DBIAS: tl.tensor, DSCALE: tl.tensor, DSHIFT: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Do all of it for WIDTH channels, which are whole groups, of one image."""
    channels = c1 + c2
    c, begin, end, stop = owned(channels, WIDTH, BLOCK_C)
    b = tl.program_id(1).to(tl.int64)
    mean, rstd = moments(MEAN, RSTD, b, c, stop, channels, group)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, stop)
    plain, weighted = gradient_sums(
        DY, X, SKIP, b * hw, 0, hw, c, stop, mean, rstd * gain, offset, c1, c2,
        SKIP_SCALE, ACTIVATION, BLOCK_HW, STAGES,
    )  # fmt: skip
    tl.debug_barrier()  # what is loaded again behind it was not kept in registers until here
    weighted *= rstd
    write_vectors(
        WEIGHT, BIAS, SCALE, scale_b, DWEIGHT, DBIAS, DSCALE, DSHIFT,
        b, c, begin, end, stop, channels, plain, weighted,
    )  # fmt: skip
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, stop)
    plain = group_sum(gain * plain, c, begin, group, GROUPS) / hw / group
    weighted = group_sum(gain * weighted, c, begin, group, GROUPS) / hw / group
    write_gradient(
        DY, X, SKIP, b * hw, 0, hw, c, begin, end, stop, mean, rstd, gain, offset, plain, weighted,
        c1, c2, DX, DSKIP, SKIP_SCALE, ACTIVATION, WIDTH, BLOCK_HW, STAGES,
    )  # fmt: skip


class _Launches:
    """The launches of one kind of call: one, or three."""

    def __init__(self, call: Call) -> None:
        given = _laid_out(call)
        self.ready = all(one is other for one, other in zip(given, call, strict=True))
        plan = Plan.of(given.inputs)
        fixed = {"SKIP_SCALE": given.skip_scale, "ACTIVATION": given.activation}
        self.sizes = plan.sizes
        self.vectors = (2, plan.batch, plan.channels)
        self.whole: Program | None = None
        if plan.one_pass:
            self.whole = plan.one_launch(
                group_norm_film_silu_backward_slab, group_norm_film_silu_backward_one_pass, fixed
            )
        else:
            self._three(plan, fixed, given.groups)

    def _three(self, plan: Plan, fixed: dict[str, Any], groups: int) -> None:
        chosen = plan.launch("backward_reduce")
        grid, rows = plan.slices(chosen)
        self.partial = (plan.batch, grid[1], 2, plan.channels)
        self.reduce = Program(group_norm_film_silu_backward_reduce, grid, fixed, chosen)
        self.reduced = (*plan.sizes, rows)
        chosen = plan.launch("backward_finalize")
        self.terms = (plan.batch, groups, 2)
        self.combine = Program(
            group_norm_film_silu_backward_finalize, (groups, plan.batch), {}, chosen
        )
        self.combined = (*plan.strides, plan.pixels, plan.group, grid[1])
        chosen = plan.launch("backward_apply")
        grid, rows = plan.slices(chosen)
        self.apply = Program(group_norm_film_silu_backward_apply, grid, fixed, chosen)
        self.applied = (*plan.sizes, rows)


_PLANS = Plans(_Launches)


@on_its_device
def backward(call: Call) -> list[Tensor | None]:
    """Return the gradients of x, skip, weight and bias, scale and shift; None for what is absent.

    Those of weight and bias are one tensor in fp32, 2 C.
    """
    plan = _PLANS.of(call)
    if not plan.ready:
        return backward(_laid_out(call))
    dy, mean, rstd, x, skip, *film = call[:9]
    scale, shift = film[2:]
    dx = empty_channels_last(x, x.shape)
    dskip = None if skip is None else empty_channels_last(skip, skip.shape)
    dscale, dshift = (None if t is None else t.new_empty(t.shape) for t in (scale, shift))
    sums = x.new_empty(plan.vectors, dtype=torch.float32)  # of every image
    vectors = (*sums.unbind(), dscale, dshift)
    images = (dy, x, skip, *film, mean, rstd)
    if plan.whole is not None:
        plan.whole(*images, *plan.sizes, dx, dskip, *vectors)
    else:
        partial = x.new_empty(plan.partial, dtype=torch.float32)
        terms = x.new_empty(plan.terms, dtype=torch.float32)
        plan.reduce(*images, *plan.reduced, partial)
        plan.combine(partial, *film, rstd, *plan.combined, terms, *vectors)
        plan.apply(*images, terms, *plan.applied, dx, dskip)
    return [dx, dskip, sums.sum(1), dscale, dshift]


def _laid_out(call: Call) -> Call:
    return Call(channels_last(call.dy), call.mean, call.rstd, *laid_out(call.inputs))
