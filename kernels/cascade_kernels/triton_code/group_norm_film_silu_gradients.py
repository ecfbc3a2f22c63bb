"""What the backward kernels of GroupNorm with FiLM and activation do to one tile of an image.

Inside a kernel: as in `group_norm_film_silu_tiles`, and `DY DX DSKIP` gradients of the images; z
the pre-activation, `mean rstd gain offset` its channels' numbers; `plain` and `weighted` sums of
dz and of dz times the normalised image.
"""

import triton
from triton import language as tl

from cascade_kernels.triton_code.group_norm_film_silu_tiles import load_tile


@triton.jit
def activation_gradient(z: tl.tensor, dy: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """The gradient of a pre-activation, given that of its activation."""
    if ACTIVATION == "silu":
        gate = tl.sigmoid(z)
        dy = dy * (gate * (1.0 + z * (1.0 - gate)))
    elif ACTIVATION == "gelu":
        # Phi(z) + z phi(z), the normal distribution and its density.
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        dy = dy * (0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density)
    return dy


@triton.jit
def gradient_tile(
    DY: tl.tensor,
    X: tl.tensor,
    SKIP: tl.tensor,
    pixel: tl.tensor,
    rows: tl.tensor,
    inside: tl.tensor,
    c: tl.tensor,
    end: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    gain: tl.tensor,
    offset: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the normalised tile and the gradient of its pre-activation, zero outside."""
    x = load_tile(X, SKIP, pixel, rows, inside, c, end, c1, c2, SKIP_SCALE)
    dy = load_tile(DY, None, pixel, rows, inside, c, end, c1 + c2, 0, 1.0)
    normal = (x - mean[None, :]) * rstd[None, :]
    return normal, activation_gradient(normal * gain[None, :] + offset[None, :], dy, ACTIVATION)


@triton.jit
def gradient_sums(
    DY: tl.tensor,
    X: tl.tensor,
    SKIP: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    c: tl.tensor,
    end: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    gain: tl.tensor,
    offset: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return, per channel, the sums of dz and of dz times the normalised image."""
    rows = tl.arange(0, BLOCK_HW)
    plain = tl.zeros([BLOCK_HW, c.shape[0]], tl.float32)
    weighted = tl.zeros([BLOCK_HW, c.shape[0]], tl.float32)
    for row in tl.range(first, last, BLOCK_HW, num_stages=STAGES):
        normal, dz = gradient_tile(
            DY, X, SKIP, start + row, rows, (row + rows < last)[:, None], c, end,
            mean, rstd, gain, offset, c1, c2, SKIP_SCALE, ACTIVATION,
        )  # fmt: skip
        plain += dz
        weighted += dz * normal
    return tl.sum(plain, 0), tl.sum(weighted, 0)


@triton.jit
def write_vectors(
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    SCALE: tl.tensor,
    scale_b: tl.tensor,
    DWEIGHT: tl.tensor,
    DBIAS: tl.tensor,
    DSCALE: tl.tensor,
    DSHIFT: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    end: tl.tensor,
    channels: tl.tensor,
    plain: tl.tensor,
    weighted: tl.tensor,
) -> None:
    """Write one image's gradients of weight, bias, scale and shift from its channels' sums."""
    at, inside = b * channels + c, c < end
    if SCALE is not None:
        weight = tl.load(WEIGHT + c, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(BIAS + c, mask=inside, other=0.0).to(tl.float32)
        dscale = weight * weighted + bias * plain
        tl.store(DSCALE + at, dscale.to(DSCALE.dtype.element_ty), mask=inside)
        tl.store(DSHIFT + at, plain.to(DSHIFT.dtype.element_ty), mask=inside)
        factor = 1.0 + tl.load(SCALE + b * scale_b + c, mask=inside, other=0.0).to(tl.float32)
        plain, weighted = factor * plain, factor * weighted
    tl.store(DWEIGHT + at, weighted, mask=inside)
    tl.store(DBIAS + at, plain, mask=inside)


@triton.jit
def write_gradient(
    DY: tl.tensor,
    X: tl.tensor,
    SKIP: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    c: tl.tensor,
    end: tl.tensor,
    mean: tl.tensor,
    rstd: tl.tensor,
    gain: tl.tensor,
    offset: tl.tensor,
    plain: tl.tensor,
    weighted: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    DX: tl.tensor,
    DSKIP: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Write the gradient of the stacked images over a range of pixels, each part to its own."""
    rows = tl.arange(0, BLOCK_HW)
    for row in tl.range(first, last, BLOCK_HW, num_stages=STAGES):
        inside = (row + rows < last)[:, None]
        normal, dz = gradient_tile(
            DY, X, SKIP, start + row, rows, inside, c, end,
            mean, rstd, gain, offset, c1, c2, SKIP_SCALE, ACTIVATION,
        )  # fmt: skip
        dx = rstd[None, :] * (gain[None, :] * dz - plain[None, :] - normal * weighted[None, :])
        tl.store(
            DX + (start + row) * c1 + (rows[:, None] * c1 + c[None, :]),
            dx.to(DX.dtype.element_ty),
            mask=inside & (c < tl.minimum(c1, end))[None, :],
        )
        if SKIP is not None:
            tl.store(
                DSKIP + (start + row) * c2 + (rows[:, None] * c2 + (c - c1)[None, :]),
                (dx * SKIP_SCALE).to(DSKIP.dtype.element_ty),
                mask=inside & ((c >= c1) & (c < end))[None, :],
            )
