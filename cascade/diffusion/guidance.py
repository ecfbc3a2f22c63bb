"""Classifier-free guidance and thresholding: what stands between a denoiser and a sampler.

Shapes: `B` batch, `C H W` image, `R` rows of a call: B, or 2 B under guidance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cascade.config.stage import ThresholdConfig
from cascade.diffusion.denoiser import Conditioning, Denoised, Denoiser, levels_of, x0_factors
from cascade_kernels.names import Backend
from cascade_kernels.sampler_step import Prediction, Update, clip, fraction_of, guide, sampler_step

ALWAYS = (0.0, math.inf)
"""The noise levels at which there is guidance unless others are given."""


class Query(NamedTuple):
    """What a network is asked: the arguments of `Denoiser.predict`."""

    x: Tensor  # R C H W
    sigma: Tensor  # R
    cond: Conditioning  # R rows

    @staticmethod
    def stack(queries: Sequence["Query"], rows: int | None = None) -> "Query":
        """Ask for all of them at once, the last row again until there are `rows`."""
        parts = [*queries]
        missing = (rows or 0) - sum(len(query.x) for query in queries)
        if missing > 0:
            last = queries[-1].row(-1)
            parts += [last] * missing
        if len(parts) == 1:
            return parts[0]
        x, sigma, cond = zip(*parts, strict=True)
        return Query(torch.cat(x), torch.cat(sigma), Conditioning.cat(cond))

    def row(self, index: int) -> "Query":
        """Return one row, as a call of its own."""
        one = slice(index, index + 1 or None)
        return Query(self.x[one], self.sigma[one], self.cond.rows(one))


@dataclass(frozen=True, eq=False)
class Guided:
    """A `denoise(x, sigma)` with guidance and a threshold, made by `guided`.

    Samplers that find its `step` let one operation turn the network's answer into the next x.

    Attributes:
        denoiser: predicts all rows in one call.
        cond: B conditions.
        both: those and then B null conditions; the same as `cond` where `scale` is 1.
        scale: guidance weight.
        interval: the noise levels, low and high, at which it holds; at others it is 1.
        threshold: applied to the guided x0.
        backend: the path of a sampler's step.
    """

    denoiser: Denoiser
    cond: Conditioning
    both: Conditioning
    scale: float
    interval: tuple[float, float]
    threshold: ThresholdConfig
    backend: Backend

    def __call__(self, x: Tensor, sigma: Tensor) -> Denoised:
        """Predict the clean image of x (B 3 H W) at each row's own noise level (B).

        Raises:
            ValueError: there is guidance at some of the levels and at others not.
        """
        weights = {self.weight(level) for level in sigma.tolist()}
        if len(weights) > 1:
            raise ValueError("some levels have guidance and some have not; ask for them apart")
        weight = weights.pop()
        out = self.denoiser.predict(*self._query(x, sigma, weight)).to(x.dtype)
        x0, variance = self.denoiser.to_x0(x, guide(out, x.shape[1], weight), sigma)
        return Denoised(clip(x0, self.threshold), variance)

    def weight(self, sigma: float) -> float:
        """Return the guidance weight at a noise level."""
        low, high = self.interval
        return self.scale if low <= sigma <= high else 1.0

    def step(
        self,
        x: Tensor,
        sigma: float,
        update: Update,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Denoised]:
        """Predict at one level for all rows and take a sampler's step; see `sampler_step`.

        Returns:
            The next x, B 3 H W, and the prediction that led there.

        Raises:
            ValueError: the update wants a variance that the network does not predict.
        """
        out = self.denoiser.predict(*self.ask(x, sigma))
        return self.take(out, x, sigma, update, previous, noise)

    def ask(self, x: Tensor, sigma: float) -> Query:
        """Return what the network is to be asked at x, B 3 H W."""
        return self._query(x, levels_of(sigma, x), self.weight(sigma))

    def take(
        self,
        out: Tensor,
        x: Tensor,
        sigma: float,
        update: Update,
        previous: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Denoised]:
        """Take a step with what the network has answered, R rows; otherwise as `step`."""
        factors = x0_factors(self.denoiser.prediction, sigma)
        x_next, x0 = sampler_step(
            x,
            out,
            Prediction(*factors, self.weight(sigma)),
            self.threshold,
            update,
            previous,
            noise,
            backend=self.backend,
        )
        if not self.denoiser.learned_variance:
            return x_next, Denoised(x0, None)
        return x_next, Denoised(x0, fraction_of(out[: len(x), x.shape[1] :].to(x.dtype)))

    def _query(self, x: Tensor, sigma: Tensor, weight: float) -> Query:
        if weight == 1:
            return Query(x, sigma, self.cond)
        return Query(torch.cat([x, x]), torch.cat([sigma, sigma]), self.both)


def guided(
    denoiser: Denoiser,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
    threshold: ThresholdConfig | None = None,
    interval: tuple[float, float] | None = None,
    *,
    backend: Backend = "auto",
) -> Guided:
    """Return a `denoise(x, sigma)` with classifier-free guidance (Imagen, eq. 2).

    Guidance is linear and x0 is affine in what the network predicts at a fixed x, so mixing the
    predictions of both branches equals mixing their x0. The variance is the conditional branch's.

    Args:
        denoiser: predicts both branches in one call of 2 B rows.
        cond: B rows.
        null: B rows, the checkpoint's null text with the same low-resolution image.
        scale: guidance weight w; 1 is off and needs no null.
        threshold: applied to the mixed x0; None leaves it.
        interval: the noise levels, low and high, outside of which there is no guidance
            (Kynkaanniemi et al. 2024); None is everywhere.
        backend: the path of a sampler's step.

    Raises:
        ValueError: `scale` is not 1 and `null` is missing or has another number of rows.
    """
    if scale == 1:
        both = cond
    elif null is None or len(null) != len(cond):
        rows = 0 if null is None else len(null)
        raise ValueError(f"guidance of {scale} needs {len(cond)} null conditions, not {rows}")
    else:
        both = Conditioning.cat([cond, null])
    threshold = threshold or ThresholdConfig(kind="none")
    return Guided(denoiser, cond, both, scale, interval or ALWAYS, threshold, backend)
