"""One of the processes that `test_parallel.py` starts: runs a list of trainings, one after another.

Usage: torchrun worker.py JOBS.json, which holds a list of `Job`s.
"""

import faulthandler
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemWriter

from cascade.config.base import merged
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.batch import Batch
from cascade.data.stream import Samples, Stream
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes, process_group
from cascade.training.interrupt import TimeIsUp
from cascade.training.loop import train
from cascade.training.weights import FreshWeights


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: of the folder that it trains in; `NAME.safetensors` gets what it publishes.
        stage: of its configuration, what differs from the fixture's.
        run: its settings.
        stops: end after the first step, with a checkpoint.
        killed: (rank, position of the stream at which that process ends, or "save": while it
            writes its first checkpoint).
        spoiled: of (position of the stream, weight that its row gets).
    """

    name: str
    stage: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    stops: bool = False
    killed: tuple[int, int | str] | None = None
    spoiled: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class EndsAt:
    """Good rows up to a position; asked for that one, the process is killed."""

    position: int
    samples: Samples

    def rows(self, positions: Sequence[int]) -> Batch:
        """See `cascade.data.batch.Samples`."""
        if self.position in positions:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.samples.rows(positions)


def run_job(job: Job, folder: Path, fixtures: Any, processes: Processes) -> None:
    """Train, and write what is published."""
    stage = StageConfig.model_validate(merged(fixtures.STAGE.model_dump(), job.stage))
    rows: Samples = fixtures.Blobs(stage.size)
    for position, weight in job.spoiled:
        rows = fixtures.Spoiled(rows, [position], weight)
    if job.killed is not None and job.killed[0] == processes.rank:
        if isinstance(job.killed[1], int):
            rows = EndsAt(job.killed[1], rows)
        else:
            _die_while_writing()
    generator = torch.Generator().manual_seed(0)
    dog = torch.randn(3, stage.unet.text_width, generator=generator)
    table = PromptTable({None: torch.zeros_like(dog[:1]), "a dog": dog})
    config = TrainConfig.model_validate(job.run)
    (folder / job.name).mkdir(parents=True, exist_ok=True)
    processes.barrier()
    arguments = (stage, FreshWeights(stage, 0), Stream(rows), table, config, folder / job.name)
    try:
        trained = train(*arguments, processes, deadline=time.monotonic() if job.stops else None)
    except TimeIsUp:
        return
    weights = processes.full_state_dict(trained.network)
    if processes.is_main:
        weights = {name: value.contiguous() for name, value in weights.items()}
        save_file(weights, folder / f"{job.name}.safetensors")


def _die_while_writing() -> None:
    def written(self: FileSystemWriter, plan: object, planner: object) -> None:
        next(Path(self.path).iterdir())  # the folder is there, and holds something
        os.kill(os.getpid(), signal.SIGKILL)

    FileSystemWriter.write_data = written  # type: ignore[assignment,method-assign]


def main(jobs: Path) -> None:
    """Run them all."""
    place = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("fixtures", place)
    assert spec is not None
    assert spec.loader is not None
    fixtures = importlib.util.module_from_spec(spec)
    sys.modules["fixtures"] = fixtures
    spec.loader.exec_module(fixtures)
    torch.set_num_threads(1)
    faulthandler.enable()  # a process that crashes says where
    with process_group(10.0, jobs.parent) as processes:
        for values in json.loads(jobs.read_text()):
            run_job(Job(**values), jobs.parent, fixtures, processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
