"""Classifier-free guidance and thresholding: what stands between a denoiser and a sampler.

Shapes: `B` batch, `C H W` image.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cascade.diffusion.denoiser import Conditioning, Denoise, Denoised, Denoiser


@dataclass(frozen=True)
class Threshold:
    """How a predicted clean image is brought back into [-1, 1] (Imagen, section 2.3).

    Attributes:
        kind: "none" leaves it, "static" clips to [-1, 1], "dynamic" clips each image to [-s, s]
            and divides by s, where s >= 1 is a percentile of its absolute values.
        percentile: in (0, 1]; Imagen's Fig. A.10 uses 0.995, DeepFloyd IF 0.95.
        cap: greatest s allowed, >= 1; DeepFloyd IF uses 1.5 in its base stage. None is no cap.

    Raises:
        ValueError: a value is outside its range.
    """

    kind: Literal["none", "static", "dynamic"] = "none"
    percentile: float = 0.995
    cap: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"the percentile must lie in (0, 1], not {self.percentile}")
        if self.cap is not None and self.cap < 1:
            raise ValueError(f"the cap must be at least 1, not {self.cap}")

    def __call__(self, x0: Tensor) -> Tensor:
        """Apply it to x0 (B C H W), each image by itself."""
        match self.kind:
            case "none":
                return x0
            case "static":
                return x0.clamp(-1, 1)
            case "dynamic":
                s = _quantile(x0.abs().flatten(1), self.percentile).clamp(1, self.cap)
                s = s.view(-1, *(1,) * (x0.dim() - 1))
                return x0.clamp(-s, s) / s


def guided(
    denoiser: Denoiser,
    cond: Conditioning,
    null: Conditioning | None = None,
    scale: float = 1.0,
    threshold: Threshold | None = None,
) -> Denoise:
    """Return a `denoise(x, sigma)` with classifier-free guidance (Imagen, eq. 2).

    Guidance is linear and x0 is affine in eps and in v at a fixed x, so mixing the x0 of both
    branches equals mixing what the network predicted. The variance is the conditional branch's.

    Args:
        denoiser: predicts both branches in one call of 2 B rows.
        cond: B rows.
        null: B rows, the checkpoint's null text with the same low-resolution image.
        scale: guidance weight w; 1 is off and needs no null.
        threshold: applied to the mixed x0; None leaves it.

    Raises:
        ValueError: `scale` is not 1 and `null` is missing or has another number of rows.
    """
    limit = threshold or Threshold()
    if scale == 1:
        both = cond
    elif null is None or len(null) != len(cond):
        rows = 0 if null is None else len(null)
        raise ValueError(f"guidance of {scale} needs {len(cond)} null conditions, not {rows}")
    else:
        both = Conditioning.cat([cond, null])

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        if scale == 1:
            plain: Denoised = denoiser(x, sigma, both)
            return Denoised(limit(plain.x0), plain.variance)
        double: Denoised = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both)
        with_text, without = double.x0.chunk(2)
        variance = None if double.variance is None else double.variance.chunk(2)[0]
        return Denoised(limit(without + scale * (with_text - without)), variance)

    return denoise


def _quantile(values: Tensor, q: float) -> Tensor:
    """Quantile of each row (B N), interpolated linearly as `torch.quantile` does.

    `torch.quantile` refuses more than 2^24 values, which a batch of 1024-pixel images exceeds.
    """
    position = q * (values.shape[1] - 1)
    low = int(position)
    high = min(low + 1, values.shape[1] - 1)
    below = values.kthvalue(low + 1, dim=1).values
    above = values.kthvalue(high + 1, dim=1).values
    return torch.lerp(below, above, position - low)
