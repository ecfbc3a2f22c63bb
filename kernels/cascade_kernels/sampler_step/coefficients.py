"""The coefficients of a sampler's step, and the plain PyTorch arithmetic they stand for.

`op.py` says which step they make up.

Shapes: `B` batch, `C H W` image, `R` rows of the network's output: B, or 2 B under guidance; `N`
values of an image.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, assert_never

import torch
from torch import Tensor

from cascade_kernels.names import ThresholdKind


class Threshold(Protocol):
    """The bound that brings a predicted clean image back into [-1, 1] (Imagen, section 2.3)."""

    @property
    def kind(self) -> ThresholdKind:
        """`none` leaves it, `static` clips to [-1, 1], `dynamic` to [-s, s], divided by s >= 1."""

    @property
    def percentile(self) -> float:
        """The quantile of an image's absolute values that s is, in (0, 1]."""

    @property
    def cap(self) -> float | None:
        """The greatest s allowed, >= 1; None is no cap."""


def clip(x0: Tensor, threshold: Threshold) -> Tensor:
    """Apply a threshold to x0 (B C H W), each image by itself."""
    match threshold.kind:
        case "none":
            return x0
        case "static":
            return x0.clamp(-1, 1)
        case "dynamic":
            s = _quantile(x0.abs().flatten(1), threshold.percentile).clamp(1, threshold.cap)
            s = s.view(-1, *(1,) * (x0.dim() - 1))
            return x0.clamp(-s, s) / s
        case kind:
            assert_never(kind)


@dataclass(frozen=True)
class Prediction:
    """The coefficients of `x0 = threshold(from_x x + from_out out)` at one noise level.

    Attributes:
        from_x: factor of x.
        from_out: factor of the guided output.
        guidance: weight w. At 1 the output has B rows; at any other weight it has 2 B, those with
            text before those without.
    """

    from_x: float
    from_out: float
    guidance: float = 1.0


@dataclass(frozen=True)
class Update:
    """The coefficients of `x_next = keep x + pull x0 + recall previous + std noise`.

    Attributes:
        keep: factor of x.
        pull: factor of the thresholded x0.
        recall: factor of another clean image, that of the step before.
        std: standard deviation of fresh noise.
        log_variance: in place of `std`, log variances between which the network's upper channels
            choose per value: exp(f log large + (1 - f) log small) (Nichol & Dhariwal 2021, eq. 15);
            (small, large).

    Raises:
        ValueError: both `std` and `log_variance` are given.
    """

    keep: float
    pull: float
    recall: float = 0.0
    std: float = 0.0
    log_variance: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.std != 0 and self.log_variance is not None:
            raise ValueError("a step has a fixed deviation or a learned variance, not both")

    @property
    def adds_noise(self) -> bool:
        """Return whether the step reads fresh noise."""
        return self.std != 0 or self.log_variance is not None

    def __call__(
        self,
        x: Tensor,
        x0: Tensor,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
        fraction: Tensor | None = None,
    ) -> Tensor:
        """Return x_next (B C H W).

        Args:
            x: B C H W.
            x0: B C H W, thresholded.
            previous: B C H W; read only where `recall` is not 0.
            noise: B C H W, unit normal; read only where the step adds noise.
            fraction: B C H W, f; read only where the variance is learned.

        Raises:
            ValueError: something that the coefficients ask for is missing.
        """
        y = self.keep * x + self.pull * x0
        if self.recall != 0:
            if previous is None:
                raise ValueError("this step recalls a previous clean image; none was given")
            y = y + self.recall * previous
        if not self.adds_noise:
            return y
        if noise is None:
            raise ValueError("this step adds noise; none was given")
        if self.log_variance is None:
            return y + self.std * noise
        if fraction is None:
            raise ValueError("this network predicts no variance; take a fixed one")
        small, large = self.log_variance
        return y + torch.exp((small + fraction * (large - small)) / 2) * noise


class Step(NamedTuple):
    """The images and the coefficients of one call."""

    x: Tensor  # B C H W
    out: Tensor  # R C H W, or R 2C H W with a learned variance
    prediction: Prediction
    threshold: Threshold
    update: Update
    previous: Tensor | None  # B C H W
    noise: Tensor | None  # B C H W


def check(step: Step) -> None:
    """Check that the images fit together, and that what the update asks for is there.

    Raises:
        ValueError: one does not, or is missing.
    """
    x, out, prediction, _, update, previous, noise = step
    rows, channels = x.shape[0] * (1 if prediction.guidance == 1 else 2), x.shape[1]
    learned = update.log_variance is not None
    if learned and out.shape[1] == channels:
        raise ValueError("this network predicts no variance; take a fixed one")
    fits = out.shape[1] in (channels, 2 * channels) and out.shape[2:] == x.shape[2:]
    if out.shape[0] != rows or not fits:
        raise ValueError(
            f"an image of shape {tuple(x.shape)} under guidance {prediction.guidance:g} needs "
            f"{rows} rows of output, not {tuple(out.shape)}"
        )
    if update.recall != 0 and (previous is None or previous.shape != x.shape):
        raise ValueError("this step recalls a previous clean image of x's shape; give one")
    if update.adds_noise and (noise is None or noise.shape != x.shape):
        raise ValueError("this step adds noise of x's shape; give some")


def fraction_of(out: Tensor) -> Tensor:
    """Return the log-interpolation fraction that variance channels in [-1, 1] stand for."""
    return (out + 1) / 2


def rank_of(percentile: float, values: int) -> tuple[int, float]:
    """Return the position of a percentile among n sorted values: its whole part and the rest."""
    position = percentile * (values - 1)
    return int(position), position - int(position)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Return the quantile of each row (B N), interpolated linearly as `torch.quantile` does.

    `torch.quantile` refuses more than 2^24 values, which a batch of 1024-pixel images exceeds.
    """
    low, weight = rank_of(q, values.shape[1])
    high = min(low + 1, values.shape[1] - 1)
    below = values.kthvalue(low + 1, dim=1).values
    above = values.kthvalue(high + 1, dim=1).values
    return torch.lerp(below, above, weight)
