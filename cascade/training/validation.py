"""The looks a run takes at itself: the same prompts, rows and noise again and again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cascade.data.images import grid, to_pil, write_png
from cascade.sampling import Tables, sample_stage, sample_stages
from cascade.stage import Stage
from cascade.training.distributed import ALONE, Processes
from cascade.training.other_stages import OtherStages

Pictures = Mapping[str, Image.Image]
"""What was drawn, by the name of the folder that keeps it."""

Figures = Mapping[str, float]
"""What was measured, by the names it has in the log."""

Draw = Callable[[Stage], Pictures]
"""From a stage, with the weights that are looked at, to pictures; every process calls it."""

Score = Callable[[Stage], Figures]
"""The same to figures."""

_AT_ONCE = 4  # pictures of another stage, which lies in memory beside the one in training


@dataclass(frozen=True)
class Look:
    """What a look at a stage in training has found."""

    pictures: Pictures = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Validation:
    """Draws all pictures of a run and takes its figures; writes `NAME/step-N.png` of each picture.

    Attributes:
        draws: what draws them.
        run_dir: gets the folders.
        processes: of the run; all draw, the first writes.
        scores: what takes the figures.
    """

    draws: Sequence[Draw]
    run_dir: Path
    processes: Processes = ALONE
    scores: Sequence[Score] = ()

    def __call__(self, stage: Stage, step: int) -> Look:
        """Look and write; every process calls it, and the first is given what was found."""
        training = stage.network.training
        stage.network.eval()
        pictures = {name: one for draw in self.draws for name, one in draw(stage).items()}
        figures = {name: one for score in self.scores for name, one in score(stage).items()}
        stage.network.train(training)
        if not self.processes.is_main:
            return Look()
        for name, picture in pictures.items():
            write_png(picture, self.run_dir / name / f"step-{step:06d}.png")
        return Look(pictures, figures)


@dataclass(frozen=True)
class SampleGrid:
    """Samples prompts, each with its own seed; each process draws a part.

    Attributes:
        prompts: one per picture.
        tables: their embeddings, by the conventions of this stage and of the later ones.
        columns: pictures in a row of the grid.
        low_res: for a super-resolution stage, what is enlarged, one per prompt: B C h w. The grid
            then shows it above the result.
        later: folders of the stages that enlarge the result; they make one more picture, `cascade`,
            whose lowest rows are theirs.
        name: of the grid.
    """

    prompts: Sequence[str]
    tables: Tables
    columns: int
    low_res: Tensor | None = None
    later: Sequence[Path] = ()
    name: str = "samples"
    processes: Processes = ALONE

    def __call__(self, stage: Stage) -> Pictures:
        """Draw the grids; every process calls it."""
        mine = self.processes.indices_of(len(self.prompts))
        low_res = None if self.low_res is None else self.low_res[mine]
        drawn = self._sampled(stage, mine, low_res, 2 * _AT_ONCE)
        shown = [] if self.low_res is None else [self.low_res]
        shown.append(self._gathered(drawn))
        pictures = {self.name: sheet(shown, self.columns)}
        if self.later:
            for folder in self.later:
                drawn = self._enlarged(folder, mine, drawn)
            pictures["cascade"] = sheet([*shown, self._gathered(drawn)], self.columns)
        return pictures

    def _sampled(
        self, stage: Stage, mine: Sequence[int], low_res: Tensor | None, at_once: int
    ) -> Tensor:
        prompts = [self.prompts[place] for place in mine]
        table = self.tables[stage.config.text]
        return sample_stage(stage, table, prompts, mine, low_res=low_res, batch_size=at_once)

    def _enlarged(self, folder: Path, mine: Sequence[int], low_res: Tensor) -> Tensor:
        """Enlarge by a stage that is loaded for this alone: training needs the memory."""
        return self._sampled(Stage.load(folder, self.processes.device), mine, low_res, _AT_ONCE)

    def _gathered(self, drawn: Tensor) -> Tensor:
        return self.processes.all_gather(drawn, len(self.prompts))


def cascade_grid(
    prompts: Sequence[str],
    tables: Tables,
    columns: int,
    others: OtherStages,
    processes: Processes = ALONE,
) -> SampleGrid:
    """Return the grid of a super-resolution stage on what the stages before it make of prompts.

    They draw now, once: nothing that is trained changes their pictures. Every process calls it.
    """
    mine = processes.indices_of(len(prompts))
    stages = (Stage.load(folder, processes.device) for folder in others.earlier)
    own = [prompts[place] for place in mine]
    drawn = sample_stages(stages, tables, own, mine, batch_size=_AT_ONCE)
    low_res = processes.all_gather(drawn, len(prompts))
    return SampleGrid(prompts, tables, columns, low_res, tuple(others.later), "cascade", processes)


def sheet(parts: Sequence[Tensor], columns: int) -> Image.Image:
    """Lay each row of pictures above the same row of the next part.

    Args:
        parts: B C H W each, of any sizes; smaller ones are enlarged, pixel by pixel.
    """
    side = max(part.shape[-1] for part in parts)
    blank = -len(parts[0]) % columns  # white, so that each part ends with a whole row
    shown = [
        F.pad(
            F.interpolate(part.float(), (side, side), mode="nearest"),
            (0, 0, 0, 0, 0, 0, 0, blank),
            value=1.0,
        )
        for part in parts
    ]
    rows = zip(*(part.split(columns) for part in shown), strict=True)
    return grid(to_pil(torch.cat([part for row in rows for part in row])), columns)
