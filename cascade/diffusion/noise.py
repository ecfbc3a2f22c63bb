"""Randomness that belongs to an image, and the noise of the low-resolution condition.

Shapes: `B` batch, `C H W` image, `h w` low-resolution image.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.config.stage import LowResConfig
from cascade.diffusion.schedule import TIMESTEPS, Schedule, make_schedule


def derive_seed(seed: int, *labels: int | str) -> int:
    """Return a 63-bit seed that is a fixed function of a seed and labels.

    The same on every machine and Python; different labels (also 1 and "1") give unrelated seeds.
    """
    text = json.dumps([seed, *labels])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class NoiseSource(Protocol):
    """One stream of random numbers per image of a batch.

    An image's numbers depend on its seed and on how many were drawn before, never on the other
    images: a picture is the same alone and in a batch.
    """

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def normal(self, *shape: int) -> Tensor:
        """Draw unit normals: B x shape, float32."""
        ...

    def uniform(self) -> Tensor:
        """Draw one number in [0, 1) per image: B, float64."""
        ...


class Noise:
    """A `NoiseSource` of one of NumPy's generators (PCG64) per image, the same on every machine.

    Numbers are drawn on the CPU and moved by whoever uses them. Of PyTorch's generator for it the
    lower 32 bits of a seed alone count: of n images n^2 / 2^33 pairs would share their noise.

    Args:
        seeds: one per image, of any size, not below 0; all their bits count.
    """

    KIND: Final = "PCG64"
    """What pictures that are kept depend on: those of another generator are others."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._streams = [np.random.default_rng(int(seed)) for seed in seeds]

    def __len__(self) -> int:
        return len(self._streams)

    def normal(self, *shape: int) -> Tensor:
        """Draw unit normals: B x shape, float32."""
        draws = [stream.standard_normal(shape, dtype=np.float32) for stream in self._streams]
        return torch.from_numpy(np.stack(draws))

    def uniform(self) -> Tensor:
        """Draw one number in [0, 1) per image: B, float64."""
        return torch.tensor([stream.random() for stream in self._streams], dtype=torch.float64)


class Stratified:
    """A `NoiseSource` whose uniforms are spread evenly over the rows of a batch.

    Row i of n draws from the i-th n-th of [0, 1), so that no batch has chance heaps of timesteps
    and its gradient varies less; each row alone is as uniform as before. Later draws take the
    strata in another order, that of a rank-1 lattice (Korobov 1959), so that two uniforms of a row
    (level and timestep) are spread evenly over the square too.

    Args:
        source: what is spread; its normals stay.
        strata: B int64 in [0, count), each row's place in the batch.
        count: rows that are spread together.
    """

    def __init__(self, source: NoiseSource, strata: Tensor, count: int) -> None:
        self._source, self._strata, self._count = source, strata, count
        self._step = _lattice_step(count)
        self._factor = 1

    def __len__(self) -> int:
        return len(self._source)

    def normal(self, *shape: int) -> Tensor:
        """Draw unit normals: B x shape, float32."""
        return self._source.normal(*shape)

    def uniform(self) -> Tensor:
        """Draw one number in [0, 1) per image, each from its stratum: B, float64."""
        within = self._source.uniform()
        strata = to_device(self._strata * self._factor % self._count, within.device)
        self._factor = self._factor * self._step % self._count
        return (strata + within) / self._count


class AtTime:
    """A `NoiseSource` whose uniforms are all one number: every row has the same timestep.

    Args:
        source: of the normals; its uniforms are not drawn.
        time: in [0, 1).
    """

    def __init__(self, source: NoiseSource, time: float) -> None:
        self._source, self._time = source, time

    def __len__(self) -> int:
        return len(self._source)

    def normal(self, *shape: int) -> Tensor:
        """Draw unit normals: B x shape, float32."""
        return self._source.normal(*shape)

    def uniform(self) -> Tensor:
        """Return the one number for each image: B, float64."""
        return torch.full((len(self),), self._time, dtype=torch.float64)


class LowResolution:
    """Noise conditioning augmentation (Imagen, section 2.4): how a stage sees its smaller image.

    The same level corrupts differently at the two places of the noise: added after a 4x
    up-sampling it averages out by 4 in sigma over one small pixel.
    """

    def __init__(self, config: LowResConfig) -> None:
        self.config = config

    @cached_property
    def schedule(self) -> Schedule:
        """Turns the augmentation level into a noise level."""
        return make_schedule(self.config.schedule)

    def __call__(
        self, low_res: Tensor, size: int | tuple[int, int], level: Tensor, noise: NoiseSource
    ) -> tuple[Tensor, Tensor]:
        """Up-sample and noise a batch of small images.

        Args:
            low_res: B C h w in [-1, 1].
            size: H = W, or (H, W).
            level: B in [0, 1], the schedule's time; a discrete schedule takes step
                floor(1000 level), at most 999.
            noise: B streams; each gives one draw of the noised image's shape.

        Returns:
            The variance-preserving latent `alpha lr + sigma_vp eps` (B C H W) and its timesteps
            (B float32, 0..1000), the two low-resolution inputs of a `Network`.
        """
        timestep = self.schedule.draw(to_device(level, low_res.device))
        sigma = self.schedule.sigma(timestep)
        if self.config.noise_at == "low":
            latent = self._resize(_noised(low_res, sigma, noise), size)
        else:
            latent = _noised(self._resize(low_res, size), sigma, noise)
        return latent, timestep.float()

    def _resize(self, images: Tensor, size: int | tuple[int, int]) -> Tensor:
        height_width = (size, size) if isinstance(size, int) else size
        mode = self.config.upsample
        corners = None if mode == "nearest" else self.config.align_corners
        return F.interpolate(images, height_width, mode=mode, align_corners=corners)


def level_from_variance(schedule: Schedule, variance: float) -> float:
    """Return the augmentation level (time in [0, 1]) whose noise has the given variance.

    DreamBooth lowers the noise augmentation of the 256x256 stage "from 1e-3 to 1e-5" while
    fine-tuning (supplement, Fig. 21) without saying of what. As a time of the cosine schedule,
    1e-3 is sigma_vp = 0.0016 to 0.006 and below one 8-bit step (2/255) already; as a variance it
    is sigma_vp = 0.032 against 0.0032, four grey levels against less than one, which explains the
    blur they see. This function serves the second reading; pass the number itself as a level for
    the first.

    Args:
        schedule: the augmentation's schedule. A level below its first step is clipped to it.
        variance: sigma_vp^2, of images in [-1, 1].

    Raises:
        ValueError: the variance is not in [0, 1).
    """
    if not 0 <= variance < 1:
        raise ValueError(f"a variance-preserving noise has a variance in [0, 1), not {variance}")
    sigma = torch.tensor(math.sqrt(variance / (1 - variance)), dtype=torch.float64)
    timestep = float(schedule.timestep(sigma))
    if schedule.num_timesteps is not None:
        # The nearest whole step, from its middle: `draw` rounds down.
        timestep = round(timestep) + 0.5
    return timestep / TIMESTEPS


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values on another device; the host does not wait for a copy to a GPU."""
    if values.device.type != "cpu" or device.type != "cuda":
        return values.to(device)
    # A copy from pageable memory would wait until the GPU has done all that is queued before it.
    return values.pin_memory().to(device, non_blocking=True)


def _lattice_step(count: int) -> int:
    """Return the integer coprime to `count` that is nearest to its golden section."""
    wanted = round(count * (math.sqrt(5) - 1) / 2)
    return min(
        (step for step in range(1, count + 1) if math.gcd(step, count) == 1),
        key=lambda step: abs(step - wanted),
    )


def _noised(images: Tensor, sigma: Tensor, noise: NoiseSource) -> Tensor:
    """`alpha x + sigma_vp eps` for sigma: B float64."""
    eps = to_device(noise.normal(*images.shape[1:]), images.device).to(images.dtype)
    alpha = torch.rsqrt(1 + sigma**2)
    column = (-1, 1, 1, 1)
    return (
        alpha.to(images.dtype).view(column) * images
        + (alpha * sigma).to(images.dtype).view(column) * eps
    )
