"""Write a sampler: from noise levels to the coefficients of its steps, and nothing else.

python examples/own_sampler.py [STEPS]

Euler's method on dx/dsigma = (x - x0) / sigma (Karras et al. 2022). It knows no network, no text
and no guidance, so it runs on every stage, on every engine, and in a server's shared batches.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise

from cascade import Cascade, SamplerConfig
from cascade.diffusion import samplers
from cascade.diffusion.samplers import SamplerCall
from cascade_kernels.sampler_step import Update


def euler(levels: Sequence[float], config: SamplerConfig) -> Iterator[SamplerCall]:
    """Follow the slope at each level to the next: x + (s - t) (x - x0) / t."""
    for t, s in pairwise(levels):
        yield SamplerCall(t, Update(keep=s / t, pull=1 - s / t))


# In the project it is this function, a line of the table, and a word of `SamplerName`; from outside
# it takes the place of one that is there.
samplers.SAMPLERS["ddim"] = euler
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
drawn = Cascade.load("mini").sample("a red cup", seeds=[0], sampler="ddim", steps=steps)
print(tuple(drawn.tensor.shape), f"mean {float(drawn.tensor.mean()):.3f}")
