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
    """

    prompts: Sequence[str]
    table: PromptSource
    run_dir: Path
    columns: int
    low_res: Tensor | None = None

    def __call__(self, stage: Stage, step: int) -> None:
        """Draw and write one grid."""
        training = stage.network.training
        stage.network.eval()
        seeds = range(len(self.prompts))
        drawn = sample_stage(stage, self.table, self.prompts, seeds, low_res=self.low_res)
        stage.network.train(training)
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
