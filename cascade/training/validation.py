"""The pictures a run draws of itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.data.images import grid, to_pil, write_png
from cascade.sampling import sample_stage
from cascade.stage import Stage
from cascade.text.prompts import PromptSource
from cascade.training.distributed import ALONE, Processes


@dataclass(frozen=True)
class ValidationGrid:
    """Draws the same prompts and seeds again and again; writes `samples/step-N.png`.

    Attributes:
        prompts: one per picture.
        table: their embeddings.
        run_dir: gets the folder `samples`.
        columns: pictures in a row of the grid.
        low_res: for a super-resolution stage, what is enlarged, one per prompt: B C h w. The grid
            then shows it above the result.
        processes: of the run; each draws a part, the first writes.
    """

    prompts: Sequence[str]
    table: PromptSource
    run_dir: Path
    columns: int
    low_res: Tensor | None = None
    processes: Processes = ALONE

    def __call__(self, stage: Stage, step: int) -> None:
        """Draw and write one grid; every process calls it."""
        training = stage.network.training
        stage.network.eval()
        count = len(self.prompts)
        mine = self.processes.indices_of(count)
        low_res = None if self.low_res is None else self.low_res[mine]
        prompts = [self.prompts[place] for place in mine]
        drawn = sample_stage(stage, self.table, prompts, mine, low_res=low_res)
        drawn = self.processes.all_gather(drawn, count)
        stage.network.train(training)
        if not self.processes.is_main:
            return
        if self.low_res is not None:
            drawn = _above(self.low_res, drawn, self.columns)
        write_png(
            grid(to_pil(drawn), self.columns), self.run_dir / "samples" / f"step-{step:06d}.png"
        )


def _above(low_res: Tensor, drawn: Tensor, columns: int) -> Tensor:
    """Interleave rows of enlarged low-resolution pictures with rows of results."""
    enlarged = F.interpolate(low_res.float(), drawn.shape[-2:], mode="nearest")
    rows = zip(enlarged.split(columns), drawn.split(columns), strict=True)
    return torch.cat([part for pair in rows for part in pair])
