"""Draw four pictures of a prompt, look at one stage alone, and change how the last one samples.

python examples/sample.py [FOLDER] [STEPS]
"""

import sys
from pathlib import Path

from cascade import Cascade

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "pictures")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
folder.mkdir(parents=True, exist_ok=True)
cascade = Cascade.load("mini")

# A seed per picture: the same prompt, seed and settings give the same picture, alone or in a batch.
drawn = cascade.sample("a red cup on a wooden table", num_images=4, steps=steps, guidance=3.0)
for seed, image in enumerate(drawn.images):
    image.save(folder / f"cup-{seed}.png")

small = cascade.sample("a dog in the snow", seeds=[7], steps=steps, last_stage="base64")
print("the base alone:", tuple(small.tensor.shape))

# What one stage does differently; every setting of a sampler can be given by its name.
quick = cascade.sample(
    "a dog in the snow", seeds=[7], steps=steps, samplers={"sr256": {"steps": 1}}
)
print("all stages:", {name: tuple(images.shape) for name, images in quick.stages.items()})
