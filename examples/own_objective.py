"""Write a training objective: images and their conditions in, a loss for every row out.

python examples/own_objective.py OUTPUT [STEPS]

Huber's loss on the clean image, which outliers pull less than squares. The loop, checkpoints,
resuming and averages are the project's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cascade import Cascade
from cascade.config.folders import cascade_folder
from cascade.config.train import TrainConfig
from cascade.data.batch import Batch
from cascade.data.stream import Stream
from cascade.diffusion.denoiser import Conditioning, Denoiser
from cascade.diffusion.noise import NoiseSource, derive_seed
from cascade.diffusion.objective import RowLosses
from cascade.training.distributed import process_group
from cascade.training.loop import train
from cascade.training.weights import StoredWeights


def huber(
    denoiser: Denoiser,
    images: torch.Tensor,
    cond: Conditioning,
    noise: NoiseSource,
    pixel_weights: torch.Tensor | None = None,
) -> RowLosses:
    """Score the prediction of each row at a timestep and with noise of its own."""
    timestep = denoiser.schedule.draw(noise.uniform().to(images.device))
    sigma = denoiser.schedule.sigma(timestep)
    eps = noise.normal(*images.shape[1:]).to(images.device)
    x = images + sigma.float().view(-1, 1, 1, 1) * eps
    loss = torch.nn.functional.huber_loss(denoiser(x, sigma, cond).x0, images, reduction="none")
    return RowLosses({"huber": loss.flatten(1).mean(dim=1)}, timestep)


class Grey:
    """A stream of batches: what a row shows is a function of its position alone."""

    def rows(self, positions: Sequence[int]) -> Batch:
        """Grey pictures with one caption."""
        count = len(positions)
        return Batch(
            images=torch.zeros(count, 3, 64, 64),
            low_res=None,
            prompts=("a grey picture",) * count,
            seeds=tuple(derive_seed(0, position) for position in positions),
            weights=torch.ones(count),
            terms=("instance",) * count,
            positions=count,
        )


cascade, output = Cascade.load("mini"), Path(sys.argv[1])
stage = cascade.stages[0].config
weights = StoredWeights(cascade_folder("mini") / cascade.manifest.stages[0])
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
config = TrainConfig(steps=steps, batch_size=2, log_every=1)
with process_group(config.parallel.timeout_minutes, output) as processes:
    prompts = cascade.prompts(["a grey picture"])
    trained = train(
        stage, weights, Stream(Grey()), prompts, config, output, processes, objective=huber
    )
trained.save(output / "stage")
print((output / "log.jsonl").read_text().splitlines()[-1])
