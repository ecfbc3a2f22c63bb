"""What the norm's Triton kernels do with one tile, pixels by channels, and with its vectors.

Within a group everything is one affine map per image and channel, so tiles ignore where groups
begin: any number of channels per group works, nothing is padded and whole lines of memory are read.

Shapes: `X SKIP Y` B HW C in channels_last memory, an absent skip None; `WEIGHT BIAS` C; `SCALE
SHIFT` B C with row strides `scale_b shift_b`, or None; `MEAN RSTD` B G; `DY DX DSKIP` gradients of
the images; `DWEIGHT DBIAS` B C in fp32, summed over the batch afterwards; `DSCALE DSHIFT` B C.
Sizes: `hw` pixels of an image; `c1 c2` channels of X and of SKIP, `group` of a group. In a tile:
`c` channels of the virtual stack [X, SKIP * SKIP_SCALE], of which those up to `stop` are read and
those from `begin` to `end` are written; `pixel` the index of its first pixel in the batch, int64;
`mean rstd gain offset` its channels' numbers, `factor` gain times rstd; z the pre-activation;
`plain` and `weighted` sums of dz and of dz times the normalised image.
"""

import triton
from triton import language as tl


@triton.jit
def load_tile(
    X: tl.tensor, SKIP: tl.tensor, pixel: tl.tensor, rows: tl.tensor, inside: tl.tensor,
    c: tl.tensor, stop: tl.tensor, c1: tl.tensor, c2: tl.tensor,
    SKIP_SCALE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load the pixels `pixel + rows` of the stack in fp32; rows not `inside` are zero."""
    x = tl.load(
        X + pixel * c1 + (rows[:, None] * c1 + c[None, :]),
        mask=inside & (c < tl.minimum(c1, stop))[None, :],
        other=0.0,
    ).to(tl.float32)
    if SKIP is not None:
        skip = tl.load(
            SKIP + pixel * c2 + (rows[:, None] * c2 + (c - c1)[None, :]),
            mask=inside & ((c >= c1) & (c < stop))[None, :],
            other=0.0,
        )
        x += skip.to(tl.float32) * SKIP_SCALE
    return x


@triton.jit
def store_tile(
    TO: tl.tensor, at: tl.tensor, values: tl.tensor, inside: tl.tensor,
    c: tl.tensor, begin: tl.tensor, end: tl.tensor, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Store the channels `begin` to `end` of the rows that are `inside`."""
    values = values.to(TO.dtype.element_ty)
    own = (c >= begin) & (c < end)
    if WIDTH % 8 != 0:  # all but the borders are stored 16 bytes at a time
        eight = c // 8 * 8
        whole = (eight >= begin) & (eight + 8 <= end)
        tl.store(TO + at, values, mask=inside & whole[None, :])
        own = own & ~whole
    tl.store(TO + at, values, mask=inside & own[None, :])


@triton.jit
def owned(
    channels: tl.tensor, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return `c begin end stop` of a program that owns WIDTH channels.

    A load is as wide as its addresses are aligned and its mask is constant: with `c` starting and
    `stop` at a multiple of eight channels, 16 bytes are read at a time whatever the group.
    """
    begin = tl.program_id(0) * WIDTH
    end = tl.minimum(begin + WIDTH, channels)
    # Programs begin at multiples of WIDTH's lowest bit; where the lanes do not suffice, at `begin`.
    ALIGNED: tl.constexpr = WIDTH % 8 == 0 or BLOCK_C - WIDTH >= 8 - (WIDTH & -WIDTH)
    start = begin // 8 * 8 if ALIGNED else begin
    return start + tl.arange(0, BLOCK_C), begin, end, tl.minimum((end + 7) // 8 * 8, channels)


@triton.jit
def group_sum(
    values: tl.tensor, c: tl.tensor, begin: tl.tensor, group: tl.tensor, GROUPS: tl.constexpr
) -> tl.tensor:
    """Replace the value of every channel from `begin`, a group's first, by its group's sum."""
    # Not `c // group`: registers would hold it from where the statistics were loaded.
    of = (c - begin + group) // group
    members = of[None, :] == tl.arange(0, GROUPS)[:, None] + 1
    sums = tl.sum(tl.where(members, values[None, :], 0.0), 1)
    return tl.sum(tl.where(members, sums[:, None], 0.0), 0)


@triton.jit
def moments(
    MEAN: tl.tensor, RSTD: tl.tensor, b: tl.tensor, c: tl.tensor, stop: tl.tensor,
    channels: tl.tensor, group: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the mean and the reciprocal deviation of every channel's group."""
    of = b * (channels // group) + c // group
    mean = tl.load(MEAN + of, mask=c < stop, other=0.0)
    return mean, tl.load(RSTD + of, mask=c < stop, other=0.0)


@triton.jit
def affine(
    WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor, SHIFT: tl.tensor,
    scale_b: tl.tensor, shift_b: tl.tensor, b: tl.tensor, c: tl.tensor, stop: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return gain and offset of the normalised channels: the norm's affine map, then FiLM's."""
    inside = c < stop
    gain = tl.load(WEIGHT + c, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(BIAS + c, mask=inside, other=0.0).to(tl.float32)
    if SCALE is not None:
        factor = 1.0 + tl.load(SCALE + b * scale_b + c, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(SHIFT + b * shift_b + c, mask=inside, other=0.0).to(tl.float32)
        gain, offset = gain * factor, offset * factor + shift
    return gain, offset


@triton.jit
def activate(z: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """Apply the activation."""
    if ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def store_activated(
    x: tl.tensor, pixel: tl.tensor, rows: tl.tensor, inside: tl.tensor,
    c: tl.tensor, begin: tl.tensor, end: tl.tensor,
    mean: tl.tensor, factor: tl.tensor, offset: tl.tensor, channels: tl.tensor, Y: tl.tensor,
    ACTIVATION: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Store activation((x - mean) * factor + offset)."""
    # Centred first: `x * factor + offset` with the mean folded in loses digits far from zero.
    y = activate((x - mean[None, :]) * factor[None, :] + offset[None, :], ACTIVATION)
    at = pixel * channels + (rows[:, None] * channels + c[None, :])
    store_tile(Y, at, y, inside, c, begin, end, WIDTH)


@triton.jit
def activation_gradient(z: tl.tensor, dy: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """Return the gradient of a pre-activation, given that of its activation."""
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
    DY: tl.tensor, X: tl.tensor, SKIP: tl.tensor,
    pixel: tl.tensor, rows: tl.tensor, inside: tl.tensor, c: tl.tensor, stop: tl.tensor,
    mean: tl.tensor, factor: tl.tensor, offset: tl.tensor, c1: tl.tensor, c2: tl.tensor,
    SKIP_SCALE: tl.constexpr, ACTIVATION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the centred tile and the gradient of its pre-activation, zero outside."""
    x = load_tile(X, SKIP, pixel, rows, inside, c, stop, c1, c2, SKIP_SCALE)
    dy = load_tile(DY, None, pixel, rows, inside, c, stop, c1 + c2, 0, 1.0)
    centred = x - mean[None, :]
    return centred, activation_gradient(centred * factor[None, :] + offset[None, :], dy, ACTIVATION)


@triton.jit
def store_gradient(
    centred: tl.tensor, dz: tl.tensor, pixel: tl.tensor, rows: tl.tensor, inside: tl.tensor,
    c: tl.tensor, begin: tl.tensor, end: tl.tensor,
    factor: tl.tensor, plain: tl.tensor, weighted: tl.tensor,
    c1: tl.tensor, c2: tl.tensor, DX: tl.tensor, DSKIP: tl.tensor,
    SKIP_SCALE: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Store factor * dz - plain - centred * weighted, the gradient of the stack, to its images."""
    dx = factor[None, :] * dz - plain[None, :] - centred * weighted[None, :]
    at = pixel * c1 + (rows[:, None] * c1 + c[None, :])
    store_tile(DX, at, dx, inside, c, begin, tl.minimum(c1, end), WIDTH)
    if DSKIP is not None:
        at = pixel * c2 + (rows[:, None] * c2 + (c - c1)[None, :])
        store_tile(DSKIP, at, dx * SKIP_SCALE, inside, c, tl.maximum(c1, begin), end, WIDTH)


@triton.jit
def write_vectors(
    WEIGHT: tl.tensor, BIAS: tl.tensor, SCALE: tl.tensor, scale_b: tl.tensor,
    DWEIGHT: tl.tensor, DBIAS: tl.tensor, DSCALE: tl.tensor, DSHIFT: tl.tensor, b: tl.tensor,
    c: tl.tensor, begin: tl.tensor, end: tl.tensor, stop: tl.tensor, channels: tl.tensor,
    plain: tl.tensor, weighted: tl.tensor,
) -> None:  # fmt: skip
    """Write one image's gradients of weight, bias, scale and shift from its channels' sums."""
    at, inside, read = b * channels + c, (c >= begin) & (c < end), c < stop
    if SCALE is not None:
        weight = tl.load(WEIGHT + c, mask=read, other=0.0).to(tl.float32)
        bias = tl.load(BIAS + c, mask=read, other=0.0).to(tl.float32)
        dscale = weight * weighted + bias * plain
        tl.store(DSCALE + at, dscale.to(DSCALE.dtype.element_ty), mask=inside)
        tl.store(DSHIFT + at, plain.to(DSHIFT.dtype.element_ty), mask=inside)
        factor = 1.0 + tl.load(SCALE + b * scale_b + c, mask=read, other=0.0).to(tl.float32)
        plain, weighted = factor * plain, factor * weighted
    tl.store(DWEIGHT + at, weighted, mask=inside)
    tl.store(DBIAS + at, plain, mask=inside)
