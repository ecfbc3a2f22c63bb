"""What a stage sees in noise: predictions of the clean picture at fixed noise levels.

Shapes: `B` rows, `T` noise levels, `C H W` pixels in [-1, 1].
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cascade.data.batch import Batch
from cascade.data.images import grid, to_pil
from cascade.diffusion.denoiser import levels_of
from cascade.diffusion.noise import Noise
from cascade.model.precision import autocast
from cascade.stage import Stage
from cascade.text.encoder import TextEmbedding
from cascade.training.distributed import ALONE, Processes
from cascade.training.validation import Pictures

TIMES: Final = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the levels stand on the schedule, of [0, 1): the middles of its fifths."""


@dataclass(frozen=True)
class X0Panel:
    """Predicts the clean pictures of fixed rows, noised by fixed noise; one call a noise level.

    Each row of training takes two rows of the panel. The upper one shows its picture and then the
    latents, the lower one what a super-resolution stage was given and then the predictions.

    Attributes:
        rows: of training.
        text: their captions' embeddings.
        processes: of the run; each predicts a part.
    """

    rows: Batch
    text: TextEmbedding
    processes: Processes = ALONE

    @torch.no_grad()
    def __call__(self, stage: Stage) -> Pictures:
        """Draw the panel `x0`; every process calls it."""
        count = len(self.rows.images)
        mine = self.processes.indices_of(count)
        cells = self.processes.all_gather(self._cells(stage, mine), count)
        return {"x0": grid(to_pil(cells.flatten(0, 2)), cells.shape[2])}

    def _cells(self, stage: Stage, mine: list[int]) -> Tensor:
        """Return the panel's cells of some rows, B 2 1+T C H W on the CPU."""
        x0 = self.rows.images[mine].to(stage.device)
        noise = Noise([self.rows.seeds[place] for place in mine])
        low_res = None if self.rows.low_res is None else self.rows.low_res[mine]
        text = TextEmbedding(self.text.embedding[mine], self.text.mask[mine])
        size = (x0.shape[-2], x0.shape[-1])
        cond = stage.conditioning(text, low_res, size, noise, None)
        given = torch.ones_like(x0) if cond.low_res is None else cond.low_res  # white: nothing
        eps = noise.normal(*x0.shape[1:]).to(stage.device)
        columns = [torch.stack([x0, given], dim=1)]
        for timestep in stage.schedule.draw(torch.tensor(TIMES, dtype=torch.float64)):
            sigma = levels_of(float(stage.schedule.sigma(timestep)), x0)
            x = x0 + sigma.float().view(-1, 1, 1, 1) * eps
            with autocast(stage.config.sampler.precision, stage.device):
                prediction = stage.denoiser(x, sigma, cond).x0
            latent = x * torch.rsqrt(1 + sigma**2).float().view(-1, 1, 1, 1)
            columns.append(torch.stack([latent, prediction], dim=1))
        return torch.stack(columns, dim=2).cpu()
