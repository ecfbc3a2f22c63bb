"""The loss on held-out pictures, by noise level: fixed rows, noised by noise that never changes.

Shapes: `N` held-out rows, `T` noise levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cascade.config.train import TrainConfig
from cascade.data.batch import Batch
from cascade.data.held_out import HeldOut
from cascade.diffusion.noise import AtTime, Noise, derive_seed
from cascade.model.precision import autocast
from cascade.progress import warn
from cascade.stage import Stage
from cascade.text.prompts import PromptEncoder, PromptSource, PromptTable
from cascade.training.distributed import Processes
from cascade.training.losses import conditioning
from cascade.training.objective import held_out_objective
from cascade.training.panels import TIMES
from cascade.training.parallel import batch_share
from cascade.training.validation import Figures

LOSS: Final = "val_loss"
"""Name of the mean over rows and levels; those of the levels follow after a slash."""


@dataclass(frozen=True)
class Rows:
    """Held-out rows of one shape.

    Attributes:
        mine: this process's part, in micro-batches.
        count: of all processes.
    """

    mine: Sequence[Batch]
    count: int


@dataclass(frozen=True)
class HeldOutLoss:
    """Scores held-out rows by the error of what the network predicts at each noise level.

    A row's noise is a function of its position and the level, and the mean is taken over all rows
    in their order: figures depend on the number of processes in their last bits at most.

    Attributes:
        rows: by shape.
        prompts: embeddings of their captions, and of the null text.
        run: its precision is taken, and one length of text where it compiles.
        processes: of the run; each scores a part.
    """

    rows: Sequence[Rows]
    prompts: PromptSource
    run: TrainConfig
    processes: Processes

    @torch.no_grad()
    def __call__(self, stage: Stage) -> Figures:
        """Take the figures; every process calls it, and calls the network equally often."""
        scored = [
            self.processes.all_gather(
                torch.cat([self._scored(stage, batch) for batch in rows.mine]), rows.count
            )
            for rows in self.rows
        ]
        means = torch.cat(scored).mean(dim=0)
        of_each = zip(TIMES, means.tolist(), strict=True)
        return {LOSS: float(means.mean())} | {f"{LOSS}/t{time}": mean for time, mean in of_each}

    def _scored(self, stage: Stage, batch: Batch) -> Tensor:
        """Return the losses of a micro-batch, N T float64 on the CPU."""
        objective, device = held_out_objective(stage), self.processes.device
        batch = batch.to(device)
        tokens = stage.config.text.max_length if self.run.compile else None
        cond = conditioning(batch, self.prompts, tokens)
        losses = []
        for time in TIMES:
            noise = Noise([derive_seed(seed, "held out", f"{time}") for seed in batch.seeds])
            with autocast(self.run.precision, device):
                scored = objective(stage.denoiser, batch.images, cond, AtTime(noise, time))
            losses.append(scored.terms["mse"])
        return torch.stack(losses, dim=1).double().cpu()


def read_held_out(
    held: HeldOut, encoder: PromptEncoder, run: TrainConfig, processes: Processes
) -> HeldOutLoss:
    """Read this process's part of the rows, and embed the captions of all; every process calls it.

    Raises:
        UserError: a picture is of no use, and so are those that would stand in for it.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for position, size in enumerate(held.samples.sizes(range(held.count))):
        groups.setdefault(size, []).append(position)
    each = batch_share(run, processes).micro_batch
    found = []
    for group in groups.values():
        mine = [group[place] for place in processes.indices_of(len(group))]
        held.samples.bring(mine)
        parts = (mine[first : first + each] for first in range(0, len(mine), each))
        found.append(Rows([held.samples.rows(part) for part in parts], len(group)))
    batches = [batch for rows in found for batch in rows.mine]
    for name in (name for batch in batches for name in batch.skipped):
        warn(f"Another held-out picture is taken for {name}.")
    lacking = (batch.prompts for batch in batches if batch.texts is None)
    prompts = [prompt for part in lacking for prompt in part if prompt is not None]
    table = PromptTable.build(
        encoder,
        processes.gathered(prompts),
        held.samples.stage.text,
        device=torch.device("cpu"),
    )
    return HeldOutLoss(found, table, run, processes)
