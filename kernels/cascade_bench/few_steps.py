"""A few steps of a run, by one of its processes: what `cascade bench memory` starts and weighs.

    torchrun -m cascade_bench.few_steps JOB

JOB is a file that holds a `Job`. Prints a line of JSON: the most bytes that each process took for
the network and its training, from the second step on, by which the optimizer has its moments. A
tiny network is trained ahead of it, so that the program itself, which no plan counts, is loaded.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from cascade.config.base import Frozen
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.config.unet import UNetConfig
from cascade.data.batch import Batch, crop_sides
from cascade.data.stream import Stream
from cascade.diffusion.noise import derive_seed
from cascade.environment import held_memory, peak_memory, reset_peak_memory
from cascade.errors import UserError
from cascade.files import read_json
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes, process_group
from cascade.training.loop import train
from cascade.training.weights import FreshWeights

STEPS: Final = 3
"""That are taken; what a run keeps at its last one comes after them."""

PROMPT: Final = "a picture"

TINY: Final = StageConfig(
    name="tiny",
    size=8,
    unet=UNetConfig(
        channels=(16, 16),
        blocks=(1, 1),
        attention=("none", "joint"),
        head_channels=16,
        text_width=16,
        context_width=16,
        time_width=16,
        pool_heads=1,
        norm_groups=4,
    ),
)


class Job(Frozen):
    """What is trained, for at least one step more than is taken."""

    stage: StageConfig
    run: TrainConfig


class Taken(Exception):
    """Ends a run whose steps are taken."""


@dataclass(frozen=True)
class Rows:
    """Random pictures. Asked for those of the second step they let the peak begin anew."""

    job: Job
    device: torch.device

    def rows(self, positions: Sequence[int]) -> Batch:
        """See `cascade.data.batch.Samples`.

        Raises:
            Taken: these are of a step that is not taken any more.
        """
        step = positions[0] // self.job.run.batch_size
        if step == STEPS:
            raise Taken
        if step == 1:
            reset_peak_memory(self.device)
        high, low = (torch.rand(len(positions), 3, side, side) * 2 - 1 for side in self._sides)
        return Batch(
            images=high,
            low_res=None if self.job.stage.low_res is None else low,
            prompts=(PROMPT,) * len(positions),
            seeds=tuple(derive_seed(0, position) for position in positions),
            weights=torch.ones(len(positions)),
            terms=("mse",) * len(positions),
            positions=len(positions),
        )

    @property
    def _sides(self) -> tuple[int, int]:
        return crop_sides(self.job.stage)


def taken(job: Job, processes: Processes) -> int:
    """Take the steps; return the bytes that this process took for them."""
    stage, device = job.stage, processes.device
    # As long as texts can be: that is what a plan counts.
    text = torch.randn(stage.text.max_length, stage.unet.text_width)
    prompts = PromptTable({None: torch.zeros_like(text[:1]), PROMPT: text}, device)
    # Rows are drawn when they are asked for, and not beside the step before.
    stream = Stream(Rows(job, device), prefetch=False)
    before = held_memory(device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(stage, FreshWeights(stage, 0), stream, prompts, job.run, Path(folder), processes)
        except Taken:
            return peak_memory(device) - before
    raise AssertionError("a run of fewer steps than are taken")


def main(path: str) -> None:
    """Tell what each process took."""
    job = Job.parse(read_json(Path(path)), path)
    with process_group(job.run.parallel.timeout_minutes, Path(path).parent) as processes:
        taken(Job(stage=TINY, run=job.run), processes)
        mine = torch.tensor([taken(job, processes)])
        everyones = processes.all_gather(mine, processes.world_size).tolist()
        if processes.is_main:
            sys.stdout.write(json.dumps(everyones) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
