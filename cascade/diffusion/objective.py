"""Training objectives: what a denoiser is asked to minimise on a batch of images.

All are written for the predicted clean image: with `SNR = 1 / sigma^2`, the mean squared error of
eps is `SNR ||x0_hat - x0||^2`, of v `(SNR + 1) ||x0_hat - x0||^2` (Salimans & Ho 2022, section 4).
Losses come back per image, so that a prior-preservation weight is a weight on a row.

Shapes: `B` batch, `C H W` image, `h w` low-resolution image.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cascade.config.stage import Prediction
from cascade.config.train import Weighting
from cascade.diffusion.denoiser import Conditioning, Denoised, Denoiser
from cascade.diffusion.noise import LowResolution, NoiseSource, to_device
from cascade.diffusion.schedule import TIMESTEPS, DiscreteSchedule


class RowLosses(NamedTuple):
    """Losses of a batch's rows."""

    terms: dict[str, Tensor]  # by name, each B float32; the loss is their sum
    timestep: Tensor  # B, 0..1000, at which the rows were noised


class Objective(Protocol):
    """Images and their conditions to losses."""

    def __call__(
        self,
        denoiser: Denoiser,
        images: Tensor,
        cond: Conditioning,
        noise: NoiseSource,
        pixel_weights: Tensor | None = None,
    ) -> RowLosses:
        """Score the prediction of each row."""


@dataclass(frozen=True)
class BaseObjective:
    """Denoising loss of a stage on whole images (DreamBooth eq. 1; Imagen, appendix A).

    Attributes:
        weighting: of the noise levels.
        gamma: limit of "min_snr".
        vb_weight: weight of the variational bound that trains a learned variance; 1 gives
            DeepFloyd IF's loss, mse + vb T / 1000 with T = 1000. 0 leaves the variance untrained.
    """

    weighting: Weighting = "prediction"
    gamma: float = 5.0
    vb_weight: float = 0.0

    def __call__(
        self,
        denoiser: Denoiser,
        images: Tensor,
        cond: Conditioning,
        noise: NoiseSource,
        pixel_weights: Tensor | None = None,
    ) -> RowLosses:
        """Draw a timestep and noise for each image and score the prediction.

        Args:
            denoiser: the network under training.
            images: B C H W in [-1, 1], x0.
            cond: B rows.
            noise: B streams; each gives a uniform (the timestep), then eps (C H W).
            pixel_weights: B 1 H W, factors of each pixel's part in both terms; None is 1.

        Returns:
            "mse", and "vb" (bits per dimension) where `vb_weight` is not 0, with the timesteps.

        Raises:
            ValueError: the bound is asked for, and the variance is not learned or the schedule is
                not discrete.
        """
        x0 = images.float()
        timestep = denoiser.schedule.draw(to_device(noise.uniform(), x0.device))
        sigma = denoiser.schedule.sigma(timestep)
        x = x0 + _column(sigma) * to_device(noise.normal(*x0.shape[1:]), x0.device)
        denoised: Denoised = denoiser(x, sigma, cond)
        weight = _root_weight(sigma, denoiser.prediction, self.weighting, self.gamma)
        # The root goes inside the square: ||x0_hat - x0||^2 alone reaches 1e9 at high noise.
        squares = (_column(weight) * (denoised.x0 - x0)).square()
        terms = {"mse": _mean(squares, pixel_weights)}
        if self.vb_weight != 0:
            schedule = denoiser.schedule
            if not isinstance(schedule, DiscreteSchedule) or denoised.variance is None:
                raise ValueError("the bound needs a discrete schedule and a learned variance")
            bound = variational_bound(
                schedule,
                timestep.long(),
                x0,
                denoised.x0.detach(),
                denoised.variance,
                pixel_weights,
            )
            terms["vb"] = self.vb_weight * schedule.num_timesteps / TIMESTEPS * bound
        return RowLosses(terms, timestep)


@dataclass(frozen=True)
class SuperResObjective:
    """Denoising loss of a super-resolution stage on (low, high) resolution pairs.

    Imagen, section 2.4: the small image is noised at a level that the network is told.

    Attributes:
        base: the loss on the large image.
        low_resolution: up-samples and noises the small image.
        level: range of the uniformly drawn augmentation level, within [0, 1]; equal ends fix it.
            Imagen trains with (0, 1), DreamBooth fine-tunes with one low level.
    """

    base: BaseObjective
    low_resolution: LowResolution
    level: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.level
        if not 0 <= low <= high <= 1:
            raise ValueError(f"augmentation levels are a range within [0, 1], not {self.level}")

    def __call__(
        self,
        denoiser: Denoiser,
        images: Tensor,
        cond: Conditioning,
        noise: NoiseSource,
        pixel_weights: Tensor | None = None,
    ) -> RowLosses:
        """Noise the small images, then score as `base` does.

        Args:
            denoiser: the network under training.
            images: B C H W in [-1, 1].
            cond: B rows; `low_res` holds the clean small images, B C h w in [-1, 1].
            noise: B streams; each gives a uniform (the level, drawn also where it is fixed), the
                low-resolution noise, then the draws of `base`.
            pixel_weights: as of `base`.

        Returns:
            As `base`.

        Raises:
            ValueError: there are no small images, or as `base`.
        """
        if cond.low_res is None:
            raise ValueError("a super-resolution stage is trained on pairs; low_res is missing")
        low, high = self.level
        level = low + (high - low) * noise.uniform()
        size = (images.shape[-2], images.shape[-1])
        low_res, aug = self.low_resolution(cond.low_res.float(), size, level, noise)
        cond = replace(cond, low_res=low_res, aug=aug)
        return self.base(denoiser, images, cond, noise, pixel_weights)


def variational_bound(
    schedule: DiscreteSchedule,
    timestep: Tensor,
    x0: Tensor,
    x0_hat: Tensor,
    fraction: Tensor,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Return one term of the variational bound, L_{t-1} or L_0 (Nichol & Dhariwal 2021, 3.1).

    The variance of the step is `exp(f log beta + (1 - f) log beta~)` (their eq. 15). Everything is
    divided by the smallest variance, so that no number grows with sigma (2e4 at the last step).

    Args:
        schedule: gives the step's levels.
        timestep: B int64, 0..999.
        x0: B C H W, the 8-bit image in [-1, 1].
        x0_hat: B C H W, its prediction; detach it to train the variance alone.
        fraction: B C H W, f.
        pixel_weights: B 1 H W, factors of each pixel's part; None is 1.

    Returns:
        B float32, bits per dimension.
    """
    small, log_ratio, mean_scale = (
        to_device(values, x0.device)[timestep].float().view(-1, 1, 1, 1)
        for values in _step_table(schedule)
    )
    log_variance = fraction.float() * log_ratio  # relative to the smallest
    error = (x0 - x0_hat).float()
    distance = (mean_scale * error).square()
    # KL of Gaussians with variances 1 : exp(log_variance) and this squared distance of the means.
    kl = (log_variance + torch.expm1(-log_variance) + distance * torch.exp(-log_variance)) / 2
    nll = _discretised_nll(error, x0, small.sqrt() * torch.exp(log_variance / 2))
    first = (timestep == 0).view(-1, 1, 1, 1)
    return _mean(torch.where(first, nll, kl), pixel_weights) / math.log(2)


def _step_table(schedule: DiscreteSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """For every step: smallest variance, log(largest / smallest), mean's slope / smallest std.

    At t = 0 the smallest variance is 0; that of t = 1 (in z) stands in, as in the paper's code.
    """
    t2 = schedule.sigmas**2
    s2 = torch.cat([t2.new_zeros(1), t2[:-1]])
    small = s2 * (t2 - s2) / t2
    large = (t2 - s2) * (1 + s2) / (1 + t2)
    small[0] = small[1] * schedule.alphas_bar[0]
    return small, (large / small).log(), (1 - s2 / t2) / small.sqrt()


def _discretised_nll(error: Tensor, x0: Tensor, std: Tensor) -> Tensor:
    """-log of the Gaussian's mass on the 8-bit level of x0 (Ho et al. 2020, eq. 13), in nats."""
    half_bin = 1 / 255
    # The outermost levels take the whole tail; 0.999 lies between them and their neighbours.
    upper = torch.where(x0 > 0.999, 1.0, torch.special.ndtr((error + half_bin) / std))
    lower = torch.where(x0 < -0.999, 0.0, torch.special.ndtr((error - half_bin) / std))
    # Far from x0 the mass underflows; 1e-12 keeps the logarithm finite.
    return -(upper - lower).clamp(min=1e-12).log()


def _root_weight(
    sigma: Tensor, prediction: Prediction, weighting: Weighting, gamma: float
) -> Tensor:
    """Square root of the weight on ||x0_hat - x0||^2; B float64."""
    if weighting == "min_snr":
        return (1 / sigma).clamp(max=math.sqrt(gamma))
    match prediction:
        case "eps":
            return 1 / sigma
        case "v":
            return torch.sqrt(1 + sigma**2) / sigma
        case "x0":
            return torch.ones_like(sigma)


def _column(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)


def _mean(values: Tensor, pixel_weights: Tensor | None) -> Tensor:
    weighted = values if pixel_weights is None else values * pixel_weights
    return weighted.flatten(1).mean(dim=1)
