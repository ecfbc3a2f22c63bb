"""Write a sampler: a function from noise to an image over `denoise(x, sigma)`, and nothing else.

python examples/own_sampler.py [STEPS]

Euler's method on dx/dsigma = (x - x0) / sigma (Karras et al. 2022). It knows no network, no text
and no guidance, so it runs on every stage, and on every engine.
"""

import sys
from itertools import pairwise

import torch

from cascade import Cascade, SamplerConfig
from cascade.diffusion import samplers
from cascade.diffusion.denoiser import Denoise, levels_of
from cascade.diffusion.noise import Noise


def euler(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Noise,
    config: SamplerConfig,
    on_step: samplers.OnStep | None = None,
) -> torch.Tensor:
    """Follow the slope at each level to the next."""
    for i, (t, s) in enumerate(pairwise(sigmas.tolist())):
        denoised = denoise(x, levels_of(t, x))
        x = x + (s - t) * (x - denoised.x0) / t
        if on_step is not None:
            on_step(i, x, denoised)
    return x


# In the project it is this function, a line of the table, and a word of `SamplerName`; from outside
# it takes the place of one that is there.
samplers.SAMPLERS["ddim"] = euler
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
drawn = Cascade.load("mini").sample("a red cup", seeds=[0], sampler="ddim", steps=steps)
print(tuple(drawn.tensor.shape), f"mean {float(drawn.tensor.mean()):.3f}")
