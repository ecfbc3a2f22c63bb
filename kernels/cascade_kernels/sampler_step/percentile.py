"""Triton code for a percentile of an image's sizes |x0|, exact and without sorting.

An image that one program holds: its order statistic is found bit by bit in registers. A larger one:
radix select over the 31 bits, three histograms of 10, 11 and 10 bits, each followed by the pick of
its digit. Counts are integers, so that atomic additions give the same answer in any order.

Bits of non-negative floats order as integers do, and NaN comes last, as it does in `torch.sort`.

Shapes: `B` batch, `n` values of an image.
"""

import triton
import triton.language as tl

# Bits of a digit and the bits below it, from the top of the 31.
DIGITS = ((10, 21), (11, 10), (10, 0))
BINS = 1 << 11  # room of one histogram
_LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def size_bits(x0: tl.tensor) -> tl.tensor:
    """Return the bits of |x0|."""
    return x0.to(tl.int32, bitcast=True) & _LARGEST


@triton.jit
def scale_between(
    value: tl.tensor, following: tl.tensor, weight: tl.tensor, cap: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Return the percentile between the bits of two neighbours, in [1, cap]; NaN stays NaN."""
    below = value.to(tl.float32, bitcast=True)
    above = following.to(tl.float32, bitcast=True)
    # The two forms of `torch.lerp`. Without a rest there may be no value above.
    s = tl.where(
        weight < 0.5, below + weight * (above - below), above - (above - below) * (1.0 - weight)
    )
    s = tl.where(weight > 0.0, s, below)
    s = tl.where(s < 1.0, 1.0, s)
    return tl.where(s > cap, cap, s)


@triton.jit
def scale_of_block(
    x0: tl.tensor, inside: tl.tensor, rank: tl.tensor, weight: tl.tensor, cap: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Return the scale of an image that is one block."""
    bits = tl.where(inside, size_bits(x0), _LARGEST)
    value = tl.sum(bits * 0, 0)
    bit = value + 0x40000000
    for _ in range(31):
        # The wanted value is the largest that has at most `rank` values below it.
        tried = value | bit
        value = tl.where(tl.sum((bits < tried).to(tl.int32), 0) <= rank, tried, value)
        bit = bit >> 1
    upto = tl.sum((bits <= value).to(tl.int32), 0)
    larger = tl.min(tl.where(bits > value, bits, _LARGEST), 0)
    following = tl.where(upto > rank + 1, value, larger)
    return scale_between(value, following, weight, cap)


@triton.jit
def count_digits(
    HISTOGRAM: tl.tensor, b: tl.tensor, digit: tl.tensor, counted: tl.tensor,
    BITS: tl.constexpr, BINS: tl.constexpr,
) -> None:  # fmt: skip
    """Add the digits of a block to the histogram of image b."""
    counts = tl.histogram(tl.where(counted, digit, 0), 1 << BITS)
    bins = tl.arange(0, 1 << BITS)
    # What is not counted was parked in the first bin.
    counts = tl.where(bins == 0, counts - tl.sum(tl.where(counted, 0, 1), 0), counts)
    tl.atomic_add(HISTOGRAM + b * BINS + bins, counts, mask=counts != 0, sem="relaxed")


@triton.jit
def sampler_step_digit(
    RAW: tl.tensor, HISTOGRAM: tl.tensor, PREFIX: tl.tensor, LARGER: tl.tensor, n: tl.tensor,
    BITS: tl.constexpr, SHIFT: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Count the next digit of the sizes that start with the prefix so far."""
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x0 = tl.load(RAW + b * n + at, mask=inside, other=0.0)
    bits = size_bits(x0)
    start = bits >> (SHIFT + BITS)
    prefix = tl.load(PREFIX + b)
    digit = (bits >> SHIFT) & ((1 << BITS) - 1)
    count_digits(HISTOGRAM, b, digit, inside & (start == prefix), BITS, BINS)
    if SHIFT == 0:
        # Should no size share the prefix of the percentile's, the next one starts with another.
        larger = tl.min(tl.where(inside & (start > prefix), bits, _LARGEST), 0)
        tl.atomic_min(LARGER + b, larger, sem="relaxed")


@triton.jit
def sampler_step_pick(
    HISTOGRAM: tl.tensor, PREFIX: tl.tensor, RANK: tl.tensor, LARGER: tl.tensor, SCALE: tl.tensor,
    rank: tl.tensor, weight: tl.tensor, cap: tl.tensor,
    BITS: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, BINS: tl.constexpr,
) -> None:  # fmt: skip
    """Find the digit that holds the rank; after the last one, the scale of image b."""
    b = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, 1 << BITS)
    counts = tl.load(HISTOGRAM + b * BINS + bins)
    left = rank
    prefix = 0
    if not FIRST:
        left = tl.load(RANK + b)
        prefix = tl.load(PREFIX + b)
    digit = tl.sum((tl.cumsum(counts, 0) <= left).to(tl.int32), 0)
    left -= tl.sum(tl.where(bins < digit, counts, 0), 0)
    value = (prefix << BITS) | digit
    if LAST:
        same = tl.sum(tl.where(bins == digit, counts, 0), 0)
        sibling = tl.min(tl.where((bins > digit) & (counts > 0), bins, 1 << BITS), 0)
        following = tl.where(sibling < (1 << BITS), (prefix << BITS) | sibling, tl.load(LARGER + b))
        following = tl.where(left + 1 < same, value, following)
        tl.store(SCALE + b, scale_between(value, following, weight, cap))
    else:
        tl.store(PREFIX + b, value)
        tl.store(RANK + b, left)
        tl.store(LARGER + b, _LARGEST)
