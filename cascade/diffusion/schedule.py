"""Noise schedules: which noise level stands at which timestep.

Every level is written as `sigma = sigma_vp / alpha`, the noise-to-signal ratio, where the papers'
variance-preserving latent is `z_t = alpha x0 + sigma_vp eps`, `alpha^2 + sigma_vp^2 = 1`.
Timesteps run over 0..1000 in every schedule, so that a network's time embedding means the same.
All arithmetic is float64: `sigma` spans nine orders of magnitude.

Shapes: any, elementwise; tables are 1-D.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cascade.config.stage import ScheduleName, Spacing

# Timesteps of all schedules lie in [0, TIMESTEPS].
TIMESTEPS = 1000

# A sigma that went through float32 is off by up to 6e-8, which is 1e-4 of a step where the
# schedules are flattest. Anything nearer to a whole step than this is that step.
_SNAP = 1e-3


class Schedule(Protocol):
    """The relation between timesteps and noise levels."""

    @property
    def num_timesteps(self) -> int | None:
        """Number of discrete steps, or None when time is continuous."""

    def sigma(self, timestep: Tensor) -> Tensor:
        """Noise level of a timestep in 0..1000; float64, same shape."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """Timestep of a noise level, the inverse of `sigma`; float64, clipped to the range."""

    def draw(self, u: Tensor) -> Tensor:
        """Timestep of a uniform number in [0, 1), as training draws it; float64, same shape."""

    def spaced(self, n: int, spacing: Spacing = "linspace", end: bool = True) -> Tensor:
        """Return `n` evenly spaced descending timesteps; 1-D float64 on the CPU.

        Args:
            n: how many.
            spacing: of a discrete schedule, by diffusers' names.
            end: whether a discrete schedule's last may be 0, whose level is a hundredth of the
                image. Else n + 1 are spaced and the last of them is left out.
        """


class CosineSchedule:
    """Continuous cosine schedule: `alpha = cos(pi t / 2)`, `sigma_vp = sin(pi t / 2)`.

    Source: Imagen, appendix F (base and 64->256 models), in continuous time t = timestep / 1000.
    The log-SNR is clipped to [-20, 20] so that `sigma` stays finite and positive at both ends.
    """

    _MAX_HALF_LOG_SNR = 10.0

    @property
    def num_timesteps(self) -> None:
        """None: time is continuous."""
        return None

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return `tan(pi t / 2)` with the log-SNR clipped."""
        angle = timestep.double() * (math.pi / 2 / TIMESTEPS)
        # tan is taken only inside (0, pi/2): at the ends rounding could flip its sign.
        angle = angle.clamp(0.0, math.pi / 2 - 1e-9)
        limit = self._MAX_HALF_LOG_SNR
        return torch.tan(angle).clamp(math.exp(-limit), math.exp(limit))

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return `1000 * 2/pi * atan(sigma)`."""
        return torch.atan(sigma.double()) * (TIMESTEPS * 2 / math.pi)

    def draw(self, u: Tensor) -> Tensor:
        """Return `1000 u`."""
        return (u.double() * TIMESTEPS).clamp(0.0, TIMESTEPS)

    def spaced(self, n: int, spacing: Spacing = "linspace", end: bool = True) -> Tensor:
        """Return 1000, 1000 (n-1)/n, ..., 1000/n: n equal intervals of time down to the image.

        Time that is continuous is spaced in this one way.

        Raises:
            ValueError: n < 1.
        """
        if n < 1:
            raise ValueError(f"a sampler needs at least one step, not {n}")
        return torch.arange(n, 0, -1, dtype=torch.float64) * TIMESTEPS / n


class DiscreteSchedule:
    """A table of 1000 noise levels given by the betas of a DDPM (Ho et al. 2020, section 2).

    Between entries the level is interpolated linearly in log sigma; at whole timesteps it is the
    entry itself.

    Args:
        betas: 1-D, 1000 values in (0, 1).

    Raises:
        ValueError: wrong shape or values.
    """

    def __init__(self, betas: Tensor) -> None:
        betas = betas.double().cpu()
        if betas.shape != (TIMESTEPS,):
            raise ValueError(f"need {TIMESTEPS} betas, not a tensor of shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("every beta must lie strictly between 0 and 1")
        self.betas = betas
        self.alphas_bar = torch.cumprod(1 - betas, dim=0)
        self.sigmas = ((1 - self.alphas_bar) / self.alphas_bar).sqrt()
        # One copy of the table per device: a fresh copy at every call would stall the GPU's queue.
        self._copies: dict[torch.device, Tensor] = {}

    @classmethod
    def squared_cosine(cls) -> "DiscreteSchedule":
        """`alpha_bar = cos^2((t + s)/(1 + s) pi/2)`, s = 0.008, betas capped at 0.999.

        Source: Nichol & Dhariwal 2021, eq. (17); DeepFloyd IF's schedule.
        """
        t = torch.arange(TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    @classmethod
    def linear(cls) -> "DiscreteSchedule":
        """Betas from 1e-4 to 0.02. Source: Ho et al. 2020, section 4; Imagen F.3 (256->1024)."""
        return cls(torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64))

    @property
    def num_timesteps(self) -> int:
        """Number of table entries."""
        return TIMESTEPS

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the level at a timestep, clipped to 0..999."""
        table = self._table(timestep.device)
        t = timestep.double().clamp(0, TIMESTEPS - 1)
        low = t.floor().long()
        high = (low + 1).clamp(max=TIMESTEPS - 1)
        # low * ratio^0 keeps the entry to the last bit when t is whole.
        return table[low] * (table[high] / table[low]) ** (t - low)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timestep of a level, clipped to 0..999; whole at (float32-rounded) entries."""
        table = self._table(sigma.device)
        sigma = sigma.double().clamp(table[0], table[-1])
        high = torch.searchsorted(table, sigma.contiguous()).clamp(1, TIMESTEPS - 1)
        low = high - 1
        t = low + torch.log(sigma / table[low]) / torch.log(table[high] / table[low])
        whole = t.round()
        return torch.where((t - whole).abs() < _SNAP, whole, t)

    def draw(self, u: Tensor) -> Tensor:
        """Return `floor(1000 u)`, at most 999."""
        # A level such as 0.3 held in float32 must not fall to the step below: it is off by 6e-5.
        return (u.double() * TIMESTEPS + 1e-4).floor().clamp(0, TIMESTEPS - 1)

    def spaced(self, n: int, spacing: Spacing = "linspace", end: bool = True) -> Tensor:
        """Return n whole descending timesteps, evenly spaced.

        "linspace" goes from 999 to 0, both included, rounded; "leading" is every k-th from 0,
        k = floor(1000 / n), as diffusers' pipelines for DeepFloyd IF have it. Without the end they
        are the first n of n + 1 such timesteps, which is how diffusers spaces DPM-Solver++.

        Raises:
            ValueError: n is not in 1..1000.
        """
        if not 1 <= n <= TIMESTEPS:
            raise ValueError(f"a schedule of {TIMESTEPS} steps cannot be sampled in {n}")
        count = n if end else min(n + 1, TIMESTEPS)
        if spacing == "leading":
            stride = TIMESTEPS // count
            return torch.arange(count - 1, -1, -1, dtype=torch.float64)[:n] * stride
        return torch.linspace(TIMESTEPS - 1, 0, count, dtype=torch.float64).round()[:n]

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            self._copies[device] = self.sigmas.to(device)
        return self._copies[device]


def make_schedule(name: ScheduleName) -> Schedule:
    """Build the schedule that a checkpoint names.

    Raises:
        ValueError: the name is none of the three.
    """
    match name:
        case "cosine":
            return CosineSchedule()
        case "squared_cosine":
            return DiscreteSchedule.squared_cosine()
        case "linear":
            return DiscreteSchedule.linear()
    raise ValueError(f"unknown noise schedule {name!r}")


def sigmas(schedule: Schedule, timesteps: Tensor | Sequence[float] | Iterable[float]) -> Tensor:
    """Turn the timesteps of a sampler into its noise levels.

    Args:
        schedule: the schedule the network was trained with.
        timesteps: n strictly descending timesteps, `schedule.spaced(n)` or any other list.

    Returns:
        n + 1 levels, 1-D float64 on the CPU, strictly descending; the last is 0, the image.

    Raises:
        ValueError: the timesteps are empty, out of range or do not descend.
    """
    t = timesteps if isinstance(timesteps, Tensor) else torch.tensor(list(timesteps))
    t = t.to("cpu", torch.float64)
    last = TIMESTEPS if schedule.num_timesteps is None else schedule.num_timesteps - 1
    if t.dim() != 1 or len(t) == 0:
        raise ValueError("a sampler needs a flat, non-empty list of timesteps")
    if not bool(((t >= 0) & (t <= last)).all()):
        raise ValueError(f"timesteps must lie in 0..{last}: {t.tolist()}")
    levels = schedule.sigma(t)
    # Levels too: two timesteps inside the clipped ends of a schedule share one level.
    if not (bool((t.diff() < 0).all()) and bool((levels.diff() < 0).all())):
        raise ValueError(f"timesteps must strictly descend: {t.tolist()}")
    return torch.cat([levels, levels.new_zeros(1)])
