"""What the kernels of GroupNorm with FiLM and activation do to one tile of an image.

Within a group everything is one affine map per image and channel, so tiles ignore where groups
begin: any number of channels per group works, nothing is padded and whole lines of memory are read.

Inside a kernel: `X SKIP Y` B HW C in channels_last memory, an absent skip None; `c` channels of the
virtual stack [X, SKIP * SKIP_SCALE], those from `end` on are left out; `c1 c2` channels of its
parts; `start` the index of an image's first pixel in the batch, int64; `first last` a range of
pixels of the image; `SCALE SHIFT` B C with row strides `scale_b shift_b`, or None.
"""

import triton
from triton import language as tl


@triton.jit
def load_tile(
    X: tl.tensor,
    SKIP: tl.tensor,
    pixel: tl.tensor,
    rows: tl.tensor,
    inside: tl.tensor,
    c: tl.tensor,
    end: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    SKIP_SCALE: tl.constexpr,
) -> tl.tensor:
    """Load the pixels `pixel + rows` of the stack in fp32; rows not `inside` are zero."""
    x = tl.load(
        X + pixel * c1 + (rows[:, None] * c1 + c[None, :]),
        mask=inside & (c < tl.minimum(c1, end))[None, :],
        other=0.0,
    ).to(tl.float32)
    if SKIP is not None:
        skip = tl.load(
            SKIP + pixel * c2 + (rows[:, None] * c2 + (c - c1)[None, :]),
            mask=inside & ((c >= c1) & (c < end))[None, :],
            other=0.0,
        )
        x += skip.to(tl.float32) * SKIP_SCALE
    return x


@triton.jit
def affine(
    WEIGHT: tl.tensor,
    BIAS: tl.tensor,
    SCALE: tl.tensor,
    SHIFT: tl.tensor,
    scale_b: tl.tensor,
    shift_b: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    end: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """Return gain and offset of the normalised channels: the norm's affine map, then FiLM's."""
    inside = c < end
    gain = tl.load(WEIGHT + c, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(BIAS + c, mask=inside, other=0.0).to(tl.float32)
    if SCALE is not None:
        factor = 1.0 + tl.load(SCALE + b * scale_b + c, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(SHIFT + b * shift_b + c, mask=inside, other=0.0).to(tl.float32)
        gain, offset = gain * factor, offset * factor + shift
    return gain, offset


@triton.jit
def activate(z: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """The activation of a pre-activation."""
    if ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def group_sum(values: tl.tensor, group: tl.tensor) -> tl.tensor:
    """Replace every channel's value by the sum over its group; the first starts at lane 0."""
    of = tl.arange(0, values.shape[0]) // group
    return tl.sum(tl.where(of[:, None] == of[None, :], values[None, :], 0.0), 1)


@triton.jit
def channel_statistics(
    X: tl.tensor,
    SKIP: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    c: tl.tensor,
    end: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    STAGES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return pivot, shift and the sum of squared deviations of every channel over some pixels.

    The mean is pivot + shift; added up, it would lose the shift's last digits far from zero.
    """
    one = tl.arange(0, 1)
    # Shifted by the range's first pixel, sums of squares keep their digits far from zero.
    pivot = load_tile(X, SKIP, start + first, one, (one < 1)[:, None], c, end, c1, c2, SKIP_SCALE)
    rows = tl.arange(0, BLOCK_HW)
    total = tl.zeros([BLOCK_HW, c.shape[0]], tl.float32)
    square = tl.zeros([BLOCK_HW, c.shape[0]], tl.float32)
    for row in tl.range(first, last, BLOCK_HW, num_stages=STAGES):
        inside = (row + rows < last)[:, None]
        x = load_tile(X, SKIP, start + row, rows, inside, c, end, c1, c2, SKIP_SCALE)
        deviation = tl.where(inside, x - pivot, 0.0)
        total += deviation
        square += deviation * deviation
    shift = tl.sum(total, 0) / (last - first)
    square = tl.sum(square, 0) - shift * shift * (last - first)
    return tl.sum(pivot, 0), shift, square


@triton.jit
def write_activated(
    X: tl.tensor,
    SKIP: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    c: tl.tensor,
    end: tl.tensor,
    mean: tl.tensor,
    factor: tl.tensor,
    offset: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    Y: tl.tensor,
    SKIP_SCALE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_HW: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Write activation((x - mean) * factor + offset) over a range of pixels."""
    rows = tl.arange(0, BLOCK_HW)
    for row in tl.range(first, last, BLOCK_HW, num_stages=STAGES):
        inside = (row + rows < last)[:, None]
        x = load_tile(X, SKIP, start + row, rows, inside, c, end, c1, c2, SKIP_SCALE)
        # Centred first: `x * factor + offset` with the mean folded in loses digits far from zero.
        y = activate((x - mean[None, :]) * factor[None, :] + offset[None, :], ACTIVATION)
        tl.store(
            Y + (start + row) * (c1 + c2) + (rows[:, None] * (c1 + c2) + c[None, :]),
            y.to(Y.dtype.element_ty),
            mask=inside & (c < end)[None, :],
        )
