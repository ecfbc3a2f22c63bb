"""Samplers: from noise to an image through a descending list of noise levels.

With `x = x0 + sigma eps`, one step goes from level t to the next lower level s:

    posterior mean       x0 + (s^2 / t^2) (x - x0)
    smallest variance    s^2 (t^2 - s^2) / t^2                  (Ho et al. 2020, beta~)
    largest variance     (t^2 - s^2) (1 + s^2) / (1 + t^2)      (Ho et al. 2020, beta)

All samplers are linear in x, x0, the x0 before it and fresh noise, with coefficients that depend on
the levels alone. A sampler is therefore a list of calls (`SamplerCall`), known before the first; it
knows no network, text or guidance. `run` makes them with `denoise(x, sigma)`, and
`cascade_kernels.sampler_step` does the arithmetic.

Levels are Python floats, so that no step waits for the device. The last level is 0, where x is
the image. `x` is B C H W.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from cascade.config.stage import SamplerConfig, SamplerName, Variance
from cascade.diffusion.denoiser import Denoise, Denoised, levels_of
from cascade.diffusion.noise import Noise
from cascade.diffusion.schedule import Schedule, sigmas
from cascade_kernels.sampler_step import Update

# Karras et al. run Heun's method from sigma = 80. Its slope correction multiplies the change of x0
# over a step by t / 2s, which is 350 in the first of 50 steps of the cosine schedule (2e4 to 32)
# and ruins the image; up there x0 hardly changes and a step of first order is enough.
_HEUN_BELOW = 100.0

OnStep: TypeAlias = Callable[[int, Tensor, Denoised], None]
"""Called after each step with its index, the new x and the prediction that led there."""


@dataclass(frozen=True)
class SamplerCall:
    """One call of the network, and what is made of its answer.

    Attributes:
        sigma: the level that x is at.
        update: from x and the prediction to the next x; it recalls the prediction of the call
            before.
        ends_step: whether the step is done with it, or another call corrects it.
    """

    sigma: float
    update: Update
    ends_step: bool = True


Sampler: TypeAlias = Callable[[Sequence[float], SamplerConfig], Iterator[SamplerCall]]
"""From n + 1 descending levels, the last 0, to the calls of n steps; what each reads of the
settings, its docstring says."""


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


def ancestral(levels: Sequence[float], config: SamplerConfig) -> Iterator[SamplerCall]:
    """Reverse the Markov chain (Ho et al. 2020, algorithm 2), with `config.variance`.

    Noise is drawn once per step except the last.
    """
    for t, s in pairwise(levels):
        yield SamplerCall(t, _reversed(t, s, config.variance))


def ddim(levels: Sequence[float], config: SamplerConfig) -> Iterator[SamplerCall]:
    """DDIM (Song et al. 2021, eq. 12); eps is taken from the thresholded x0, as Imagen does.

    Noise is drawn only when `config.eta` > 0, once per step except the last.
    """
    for t, s in pairwise(levels):
        std = config.eta * math.sqrt(_smallest(t, s))
        yield SamplerCall(t, _towards(math.sqrt(s**2 - std**2) / t, std))


def dpmpp_2m(levels: Sequence[float], config: SamplerConfig) -> Iterator[SamplerCall]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order at one call per step.

    The first step and the step to 0, where log sigma has no end, are of first order.
    """
    for i, (t, s) in enumerate(pairwise(levels)):
        # x0 extrapolated to the middle of the step, linearly in log sigma.
        ahead = math.log(t / s) / math.log(levels[i - 1] / t) / 2 if i > 0 and s > 0 else 0.0
        pull = (t - s) / t
        yield SamplerCall(t, Update(s / t, pull * (1 + ahead), recall=-pull * ahead))


def heun(levels: Sequence[float], config: SamplerConfig) -> Iterator[SamplerCall]:
    """Heun's method on dx/dsigma = (x - x0) / sigma (Karras et al. 2022, algorithm 1).

    Second order at two calls per step. The step to 0, and those from levels above 100, are of first
    order and take one.
    """
    for t, s in pairwise(levels):
        corrected = s > 0 and t <= _HEUN_BELOW
        yield SamplerCall(t, _towards(s / t), ends_step=not corrected)
        if corrected:
            # The mean of both slopes instead of the first: by how much x0 has changed at s.
            change = (t - s) / (2 * s)
            yield SamplerCall(s, Update(1.0, change, recall=-change))


SAMPLERS: Final[dict[SamplerName, Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "heun": heun,
}


def levels(schedule: Schedule, config: SamplerConfig) -> Tensor:
    """Return the noise levels of a sampler's settings, as `schedule.sigmas` does."""
    if config.timesteps is not None:
        return sigmas(schedule, config.timesteps)
    # From one stride below its neighbour, t = 0 is far too long a step for the second order of
    # DPM-Solver++: a step from there to the image, of first order, is the better one.
    end = config.name != "dpmpp_2m"
    return sigmas(schedule, schedule.spaced(config.steps, config.spacing, end))


def calls(config: SamplerConfig, levels: Tensor) -> tuple[SamplerCall, ...]:
    """Return the calls of a sampler, in order.

    Args:
        config: names the sampler, and says what it reads.
        levels: n + 1, descending, the last 0.

    Raises:
        ValueError: the levels are malformed.
    """
    down: list[float] = levels.tolist()
    falling = all(t > s for t, s in pairwise(down))
    if len(down) < 2 or not falling or down[-1] != 0:
        raise ValueError("noise levels must strictly descend and end with 0")
    return tuple(SAMPLERS[config.name](down, config))


class Trajectory:
    """B images on their way through a sampler's calls.

    Attributes:
        x: B C H W, at the level of the next call.
        steps: how many are done.
    """

    def __init__(self, calls: Sequence[SamplerCall], x: Tensor, noise: Noise) -> None:
        """Start at x, B C H W, at the first call's level, with B streams of noise."""
        self.x = x
        self.steps = 0
        self._calls = calls
        self._at = 0
        self._noise = noise
        self._previous: Tensor | None = None

    @property
    def done(self) -> bool:
        """Return whether no call is left: x is the images."""
        return self._at == len(self._calls)

    @property
    def call(self) -> SamplerCall:
        """Return the next call."""
        return self._calls[self._at]

    @torch.no_grad()
    def advance(self, step: Callable[..., tuple[Tensor, Denoised]]) -> Denoised | None:
        """Make the next call.

        Args:
            step: as `Stepper.step`.

        Returns:
            The prediction where the call ends a step.

        Raises:
            ValueError: a learned variance is wanted and not predicted.
        """
        call = self.call
        fresh = self._noise.normal(*self.x.shape[1:]).to(self.x) if call.update.adds_noise else None
        self.x, denoised = step(self.x, call.sigma, call.update, self._previous, fresh)
        self._previous = denoised.x0
        self._at += 1
        self.steps += call.ends_step
        return denoised if call.ends_step else None


@torch.no_grad()
def run(
    calls: Sequence[SamplerCall],
    denoise: Denoise,
    x: Tensor,
    noise: Noise,
    on_step: OnStep | None = None,
) -> Tensor:
    """Make a sampler's calls and return the images, B C H W.

    Args:
        denoise: the prediction.
        x: B C H W, at the first call's level.
        noise: B streams; what is drawn of them is a function of the calls.
        on_step: called after each step.

    Raises:
        ValueError: a learned variance is wanted and not predicted.
    """
    way = Trajectory(calls, x, noise)
    step = _Apart(denoise).step
    if isinstance(denoise, Stepper):
        step = denoise.step
    while not way.done:
        denoised = way.advance(step)
        if on_step is not None and denoised is not None:
            on_step(way.steps - 1, way.x, denoised)
    return way.x


@dataclass(frozen=True)
class _Apart:
    """A plain `denoise` as a `Stepper`: the prediction first, then the update."""

    denoise: Denoise

    def step(
        self,
        x: Tensor,
        sigma: float,
        update: Update,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Denoised]:
        denoised = self.denoise(x, levels_of(sigma, x))
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
