"""Deviations of answers and images, and the limits of an engine's deviation from eager.

An engine rounds as eager does in the same precision, only in another order. So it may deviate from
eager in fp32 at most `FACTOR` times as far as eager in its own precision does:

    |engine - eager| <= |engine - exact| + |exact - eager| <= 2 |exact - eager|

for an engine that is as exact as eager. Images are few and their stages carry roundings on, like
random walks of which each samples one: one walk ends twice as far as another by chance alone, so
that an engine's may, and `PICTURES_FACTOR` is 3. For fp32 the baseline is eager in fp64; for fp16
and bf16 it is the network cast to that precision, beside which fp32 counts as exact. Where the
baseline happens to be short, a floor stands in for it. Quantized graphs have no eager twin:
theirs are limits that only a broken quantization exceeds, and the report says what they cost.

Shapes: `B` images, `C H W` pixels in [-1, 1]; a grey level is 2 / 255.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from cascade.config.base import Frozen
from cascade_export.graph.numerics import Numerics, Precision
from cascade_export.graph.probe import Figures, TensorDeviation, rms

FACTOR: Final = 2.0
PICTURES_FACTOR: Final = 3.0
NEAR_ZERO: Final = 10.0  # times that an input is as large as an answer; mini's others are at most 4
GREY_LEVELS: Final = 127.5  # per unit of an image in [-1, 1]


class PictureDeviation(Figures):
    """Deviation of images from the reference's.

    Attributes:
        rms: root mean square of the difference before rounding, grey levels.
        differing: share of the 8-bit values that differ.
        greatest: the largest difference of 8-bit values.
    """

    rms: float
    differing: float
    greatest: int

    @property
    def psnr(self) -> float:
        """Return the peak signal-to-noise ratio before rounding, dB; infinite for equal images."""
        return math.inf if self.rms == 0 else 20 * math.log10(255 / self.rms)


class Floor(Frozen):
    """A deviation that is always allowed.

    Attributes:
        relative: of an answer.
        of_input: whether it is of the network's input where the answer is near zero: such an
            answer, as the picture that is seen in white noise, is the difference of values of the
            input's size, and has their roundings.
        rms: of images, grey levels. A value changes when its difference crosses a rounding
            boundary, with a probability of its size in grey levels: this is the floor of the
            share of differing values too.
    """

    relative: float
    of_input: bool = False
    rms: float
    greatest: int


# fp32: sums of some 10^4 products in another order, 100 roundings of 6e-8 as they add up at random;
# of an input of unit variance they are the 0.001 grey levels that its pictures may be off by.
# fp16 and bf16: two roundings of the result, the engine's and eager's.
FLOORS: Final[Mapping[Precision, Floor]] = {
    "fp32": Floor(relative=1e-5, of_input=True, rms=1e-3, greatest=1),
    "fp16": Floor(relative=2**-10, rms=0.05, greatest=1),
    "bf16": Floor(relative=2**-7, rms=0.4, greatest=2),
}
# int8 costs mini's answers 2 to 3 %, and 15 % where the input is white noise at the highest level,
# which no calibration resembles; its images end at 35 and 37 dB. Below 30 the loss is plain.
_QUANTIZED: Final = Floor(relative=0.25, rms=255 / 10**1.5, greatest=255)


def floor_of(numerics: Numerics) -> Floor:
    """Return an engine's floor: its precision's, or 25 % and 30 dB if quantized."""
    return FLOORS[numerics.precision] if numerics.quantization == "none" else _QUANTIZED


def picture_deviation(pictures: Tensor, reference: Tensor) -> PictureDeviation:
    """Compare images B C H W in [-1, 1] before and after rounding to 8 bits."""
    difference = (pictures.double().cpu() - reference.double().cpu()) * GREY_LEVELS
    levels = (to_levels(pictures) - to_levels(reference)).abs()
    return PictureDeviation(
        rms=rms(difference),
        differing=float((levels > 0).double().mean()),
        greatest=int(levels.max()),
    )


def tensor_limit(eager: TensorDeviation | None, numerics: Numerics, shrunk: float = 1.0) -> float:
    """Return an engine's largest relative deviation where eager in its precision has this one.

    Args:
        eager: None for the floor alone.
        shrunk: how many times the network's input is as large as its answer.
    """
    floor = floor_of(numerics)
    least = floor.relative * (shrunk if floor.of_input and shrunk > NEAR_ZERO else 1.0)
    return least if eager is None else max(FACTOR * eager.relative, least)


def picture_limit(
    eager: PictureDeviation | None, numerics: Numerics, values: int | None = None
) -> PictureDeviation:
    """Return the largest deviation of an engine's images where eager's in its precision have this.

    Of few `values` four may differ: where one is expected to, more than four do by chance once in
    270 times (Poisson).

    Args:
        eager: None for the floor alone.
    """
    floor = floor_of(numerics)
    eager = eager or PictureDeviation(rms=0.0, differing=0.0, greatest=0)
    handful = 4 / values if values else 0.0
    return PictureDeviation(
        rms=max(PICTURES_FACTOR * eager.rms, floor.rms),
        differing=min(max(PICTURES_FACTOR * eager.differing, floor.rms, handful), 1.0),
        greatest=max(round(PICTURES_FACTOR * eager.greatest), floor.greatest),
    )


def within(engine: PictureDeviation, limit: PictureDeviation) -> bool:
    """Return whether images keep a limit in every respect; NaN never does."""
    return (
        engine.rms <= limit.rms
        and engine.differing <= limit.differing
        and engine.greatest <= limit.greatest
    )


def to_levels(pictures: Tensor) -> Tensor:
    """Round images in [-1, 1] to grey levels 0..255, as `cascade.data.images.to_pil` does.

    NaN, which an image has no level for, becomes one that differs from every other.
    """
    levels = pictures.detach().float().cpu().clamp(-1, 1).add(1).mul(GREY_LEVELS).round()
    return levels.nan_to_num(nan=-1.0).to(torch.int16)
