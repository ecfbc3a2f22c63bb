"""Classifier-free guidance and thresholding: what stands between a denoiser and a sampler.

Shapes: `B` batch, `C H W` image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cascade.config.stage import ThresholdConfig
from cascade.diffusion.denoiser import Conditioning, Denoised, Denoiser, levels_of, x0_factors
from cascade_kernels.names import Backend
from cascade_kernels.sampler_step import Prediction, Update, clip, fraction_of, guide, sampler_step


@dataclass(frozen=True, eq=False)
class Guided:
    """A `denoise(x, sigma)` with guidance and a threshold, made by `guided`.

    Samplers that find its `step` let one operation turn the network's answer into the next x.

    Attributes:
        denoiser: predicts all rows in one call.
        both: B conditions, or where `scale` is not 1 those and then B null conditions.
        scale: guidance weight.
        threshold: applied to the guided x0.
        backend: the path of a sampler's step.
    """

    denoiser: Denoiser
    both: Conditioning
    scale: float
    threshold: ThresholdConfig
    backend: Backend

    def __call__(self, x: Tensor, sigma: Tensor) -> Denoised:
        """Predict the clean image of x (B 3 H W) at each row's own noise level (B)."""
        out = guide(self._answer(x, sigma).to(x.dtype), x.shape[1], self.scale)
        x0, variance = self.denoiser.to_x0(x, out, sigma)
        return Denoised(clip(x0, self.threshold), variance)

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
        out = self._answer(x, levels_of(sigma, x))
        factors = x0_factors(self.denoiser.prediction, sigma)
        x_next, x0 = sampler_step(
            x,
            out,
            Prediction(*factors, self.scale),
            self.threshold,
            update,
            previous,
            noise,
            backend=self.backend,
        )
        if not self.denoiser.learned_variance:
            return x_next, Denoised(x0, None)
        return x_next, Denoised(x0, fraction_of(out[: len(x), x.shape[1] :].to(x.dtype)))

    def _answer(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.scale == 1:
            return self.denoiser.predict(x, sigma, self.both)
        return self.denoiser.predict(torch.cat([x, x]), torch.cat([sigma, sigma]), self.both)


def guided(
    denoiser: Denoiser,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
    threshold: ThresholdConfig | None = None,
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
    return Guided(denoiser, both, scale, threshold or ThresholdConfig(kind="none"), backend)
