"""Triton kernels of GroupNorm with FiLM and activation for images that registers can hold.

A program holds all pixels of an image's whole groups, and so reads every image once. There are no
atomic additions. Shapes: as in `tiles`.
"""

import triton
from triton import language as tl

from cascade_kernels.group_norm_film_silu.tiles import (
    affine,
    gradient_tile,
    group_sum,
    load_tile,
    moments,
    owned,
    store_activated,
    store_gradient,
    write_vectors,
)


@triton.jit
def group_norm_film_silu_slab(
    X: tl.tensor, SKIP: tl.tensor, WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor,
    SHIFT: tl.tensor, scale_b: tl.tensor, shift_b: tl.tensor, hw: tl.tensor, c1: tl.tensor,
    c2: tl.tensor, group: tl.tensor, Y: tl.tensor, MEAN: tl.tensor, RSTD: tl.tensor,
    SKIP_SCALE: tl.constexpr, EPS: tl.constexpr, ACTIVATION: tl.constexpr,
    WIDTH: tl.constexpr, GROUPS: tl.constexpr, BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """Write the output and the statistics of WIDTH channels, which are whole groups."""
    channels = c1 + c2
    c, begin, end, stop = owned(channels, WIDTH, BLOCK_C)
    b = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_HW)
    inside = (rows < hw)[:, None]
    x = load_tile(X, SKIP, b * hw, rows, inside, c, stop, c1, c2, SKIP_SCALE)
    about = group_sum(tl.sum(x, 0), c, begin, group, GROUPS) / hw / group
    # Far from zero that sum was rounded coarsely; the sums of differences from it are not.
    x = tl.where(inside, x - about[None, :], 0.0)
    shift = group_sum(tl.sum(x, 0), c, begin, group, GROUPS) / hw / group
    square = group_sum(tl.sum(x * x, 0), c, begin, group, GROUPS) / hw / group
    rstd = tl.rsqrt(square - shift * shift + EPS)
    of = b * (channels // group) + c // group
    first = (c % group == 0) & (c >= begin) & (c < end)
    tl.store(MEAN + of, about + shift, mask=first)
    tl.store(RSTD + of, rstd, mask=first)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, stop)
    store_activated(
        x, b * hw, rows, inside, c, begin, end, shift, rstd * gain, offset, channels, Y,
        ACTIVATION, WIDTH,
    )  # fmt: skip


@triton.jit
def group_norm_film_silu_backward_slab(
    DY: tl.tensor, X: tl.tensor, SKIP: tl.tensor,
    WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor, SHIFT: tl.tensor,
    MEAN: tl.tensor, RSTD: tl.tensor, scale_b: tl.tensor, shift_b: tl.tensor,
    hw: tl.tensor, c1: tl.tensor, c2: tl.tensor, group: tl.tensor, DX: tl.tensor, DSKIP: tl.tensor,
    DWEIGHT: tl.tensor, DBIAS: tl.tensor, DSCALE: tl.tensor, DSHIFT: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_HW: tl.constexpr, BLOCK_C: tl.constexpr,
) -> None:  # fmt: skip
    """Write all gradients of WIDTH channels, which are whole groups."""
    channels = c1 + c2
    c, begin, end, stop = owned(channels, WIDTH, BLOCK_C)
    b = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BLOCK_HW)
    inside = (rows < hw)[:, None]
    mean, rstd = moments(MEAN, RSTD, b, c, stop, channels, group)
    gain, offset = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, stop)
    factor = rstd * gain
    centred, dz = gradient_tile(
        DY, X, SKIP, b * hw, rows, inside, c, stop, mean, factor, offset, c1, c2,
        SKIP_SCALE, ACTIVATION,
    )  # fmt: skip
    tl.debug_barrier()  # what is loaded again behind it was not kept in registers until here
    plain, weighted = tl.sum(dz, 0), rstd * tl.sum(dz * centred, 0)
    write_vectors(
        WEIGHT, BIAS, SCALE, scale_b, DWEIGHT, DBIAS, DSCALE, DSHIFT,
        b, c, begin, end, stop, channels, plain, weighted,
    )  # fmt: skip
    gain, _ = affine(WEIGHT, BIAS, SCALE, SHIFT, scale_b, shift_b, b, c, stop)
    plain = rstd * group_sum(gain * plain, c, begin, group, GROUPS) / hw / group
    weighted = rstd * rstd * group_sum(gain * weighted, c, begin, group, GROUPS) / hw / group
    store_gradient(
        centred, dz, b * hw, rows, inside, c, begin, end, factor, plain, weighted,
        c1, c2, DX, DSKIP, SKIP_SCALE, WIDTH,
    )  # fmt: skip
