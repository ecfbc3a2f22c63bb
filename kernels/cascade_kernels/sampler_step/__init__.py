"""One step of a sampler: guidance, the clean image, its threshold and the update, at once."""

from cascade_kernels.sampler_step.coefficients import (
    Prediction,
    Threshold,
    Update,
    clip,
    fraction_of,
    rank_of,
)
from cascade_kernels.sampler_step.op import decompositions, guide, sampler_step

__all__ = [
    "Prediction",
    "Threshold",
    "Update",
    "clip",
    "decompositions",
    "fraction_of",
    "guide",
    "rank_of",
    "sampler_step",
]
