"""Samplers: from noise to an image through a descending list of noise levels.

Each is a function of `denoise(x, sigma)` and knows no network, text or guidance. With
`x = x0 + sigma eps`, one step goes from level t to the next lower level s:

    posterior mean       x0 + (s^2 / t^2) (x - x0)
    smallest variance    s^2 (t^2 - s^2) / t^2                  (Ho et al. 2020, beta~)
    largest variance     (t^2 - s^2) (1 + s^2) / (1 + t^2)      (Ho et al. 2020, beta)

All samplers are linear in x, x0, the x0 before it and fresh noise: they compute the coefficients of
a step (`Update`), and `cascade_kernels.sampler_step` does the arithmetic.

Levels are Python floats, so that no step waits for the device. The last level is 0, where x is
the image. `x` is B C H W, `sigmas` is 1-D as made by `cascade.diffusion.schedule.sigmas`.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from cascade.config.stage import SamplerConfig, SamplerName, Variance
from cascade.diffusion.denoiser import Denoise, Denoised, levels_of
from cascade.diffusion.noise import Noise
from cascade_kernels.sampler_step import Update

# Karras et al. run Heun's method from sigma = 80. Its slope correction multiplies the change of x0
# over a step by t / 2s, which is 350 in the first of 50 steps of the cosine schedule (2e4 to 32)
# and ruins the image; up there x0 hardly changes and a step of first order is enough.
_HEUN_BELOW = 100.0

# Called after each step with its index, the new x and the prediction that led there.
OnStep = Callable[[int, Tensor, Denoised], None]


@runtime_checkable
class Stepper(Protocol):
    """A `denoise` that takes a sampler's step itself, such as what `guided` returns."""

    def step(
        self,
        x: Tensor,
        sigma: float,
        update: Update,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Denoised]:
        """Return the next x (B C H W) and the prediction at x that led there."""


def initial(noise: Noise, shape: tuple[int, ...], sigma_max: float) -> Tensor:
    """Draw the start of sampling (B x shape, float32), on the noise's device.

    `x = sqrt(1 + sigma_max^2) eps`: in the papers' terms `z_T` is exactly a unit normal.
    """
    return math.sqrt(1 + float(sigma_max) ** 2) * noise.normal(*shape)


class Sampler(Protocol):
    """From noise to an image."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        noise: Noise,
        config: SamplerConfig,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Walk down the noise levels.

        Args:
            denoise: the prediction.
            x: B C H W, at level sigmas[0].
            sigmas: n + 1 descending levels, the last 0.
            noise: B streams; what is drawn of them is a function of the levels and settings.
            config: what each sampler reads of it, its docstring says.
            on_step: called after each step.

        Returns:
            B C H W, the images.

        Raises:
            ValueError: the levels are malformed, or a learned variance is wanted and not predicted.
        """


@torch.no_grad()
def ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    config: SamplerConfig,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample the reversed Markov chain (Ho et al. 2020, algorithm 2), of `config.variance`.

    Each stream of noise gives one draw per step except the last.
    """
    for i, (t, s) in enumerate(pairwise(_levels(sigmas))):
        fresh = noise.normal(*x.shape[1:]).to(x) if s > 0 else None
        x, denoised = _step(denoise, x, t, _reversed(t, s, config.variance), noise=fresh)
        if on_step is not None:
            on_step(i, x, denoised)
    return x


@torch.no_grad()
def ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    config: SamplerConfig,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12); eps is taken from the thresholded x0, as Imagen does.

    Noise is drawn only when `config.eta` > 0, once per step except the last.
    """
    for i, (t, s) in enumerate(pairwise(_levels(sigmas))):
        std = config.eta * math.sqrt(_smallest(t, s))
        fresh = noise.normal(*x.shape[1:]).to(x) if std > 0 else None
        x, denoised = _step(denoise, x, t, _towards(math.sqrt(s**2 - std**2) / t, std), noise=fresh)
        if on_step is not None:
            on_step(i, x, denoised)
    return x


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    config: SamplerConfig,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order at one call per step.

    The first step and the step to 0, where log sigma has no end, are of first order.
    """
    levels = _levels(sigmas)
    previous: Tensor | None = None
    for i, (t, s) in enumerate(pairwise(levels)):
        # x0 extrapolated to the middle of the step, linearly in log sigma.
        ahead = math.log(t / s) / math.log(levels[i - 1] / t) / 2 if i > 0 and s > 0 else 0.0
        pull = (t - s) / t
        update = Update(s / t, pull * (1 + ahead), recall=-pull * ahead)
        x, denoised = _step(denoise, x, t, update, previous)
        previous = denoised.x0
        if on_step is not None:
            on_step(i, x, denoised)
    return x


@torch.no_grad()
def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    config: SamplerConfig,
    on_step: OnStep | None = None,
) -> Tensor:
    """Heun's method on dx/dsigma = (x - x0) / sigma (Karras et al. 2022, algorithm 1).

    Second order at two calls per step. The step to 0, and those from levels above 100, are of first
    order and take one.
    """
    for i, (t, s) in enumerate(pairwise(_levels(sigmas))):
        x, denoised = _step(denoise, x, t, _towards(s / t))
        if s > 0 and t <= _HEUN_BELOW:
            # The mean of both slopes instead of the first: by how much x0 has changed at s.
            change = (t - s) / (2 * s)
            x, _ = _step(denoise, x, s, Update(1.0, change, recall=-change), denoised.x0)
        if on_step is not None:
            on_step(i, x, denoised)
    return x


SAMPLERS: Final[dict[SamplerName, Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "heun": heun,
}


def _levels(sigmas: Tensor) -> list[float]:
    levels: list[float] = sigmas.tolist()
    falling = all(t > s for t, s in pairwise(levels))
    if len(levels) < 2 or not falling or levels[-1] != 0:
        raise ValueError("noise levels must strictly descend and end with 0")
    return levels


def _step(
    denoise: Denoise,
    x: Tensor,
    sigma: float,
    update: Update,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Denoised]:
    """Predict at x and take the step, in one operation where `denoise` knows how."""
    if isinstance(denoise, Stepper):
        return denoise.step(x, sigma, update, previous, noise)
    denoised = denoise(x, levels_of(sigma, x))
    return update(x, denoised.x0, previous, noise, denoised.variance), denoised


def _towards(keep: float, std: float = 0.0) -> Update:
    """Keep that much of x and fill up with x0."""
    return Update(keep, 1 - keep, std=std)


def _reversed(t: float, s: float, variance: Variance) -> Update:
    """Take one step of the reversed Markov chain from t to s."""
    keep = (s / t) ** 2
    if s == 0:
        return _towards(keep)
    small, large = _smallest(t, s), _largest(t, s)
    if variance == "learned":
        return Update(keep, 1 - keep, log_variance=(math.log(small), math.log(large)))
    return _towards(keep, math.sqrt(large if variance == "fixed_large" else small))


def _smallest(t: float, s: float) -> float:
    return s**2 * (t**2 - s**2) / t**2


def _largest(t: float, s: float) -> float:
    return (t**2 - s**2) * (1 + s**2) / (1 + t**2)
