"""`cascade train CASCADE`: all stages of a cascade, each by processes of its own.

A stage's run is what `cascade train` does with its file; stages need nothing of each other, so
they may be trained one after another or side by side. What has ended is not begun again.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch

from cascade.assembling import assemble
from cascade.config.base import read_toml
from cascade.config.cascade_run import CascadeRunConfig
from cascade.config.folders import MANIFEST, check_chain
from cascade.config.train import PretrainConfig
from cascade.errors import UserError
from cascade.launch import Launch
from cascade.training.interrupt import noted_status

_RUNS: Final = "runs"
_CASCADE: Final = "cascade"


@dataclass(frozen=True)
class StageJob:
    """A stage's run, and how it is started.

    Attributes:
        file: of its settings.
        overrides: of them.
        run: the settings.
    """

    file: Path
    overrides: tuple[str, ...]
    run: PretrainConfig


class Ended(Exception):
    """A stage's run ended before its last step.

    Attributes:
        status: of its command.
    """

    def __init__(self, stage: str, status: int) -> None:
        super().__init__(f"stage '{stage}' ended with status {status}")
        self.status = status


def train_cascade(
    config: CascadeRunConfig, folder: Path, minutes: float | None = None, dry_run: bool = False
) -> Path:
    """Train all stages and write their cascade; started again, it goes on where it was.

    Args:
        folder: that the stages' files are in.
        minutes: after which the stages in training stop with a checkpoint; None is never.
        dry_run: let every stage tell what it would do, and do nothing.

    Returns:
        The cascade's folder.

    Raises:
        UserError: a setting is wrong, or the stages are no chain.
        Ended: a stage ended early, or failed.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    stages, made = read_stages(config, folder), config.output / _CASCADE
    side_by_side = config.side_by_side and not dry_run
    more = ["--dry-run"] if dry_run else []
    for group in [stages] if side_by_side else [[stage] for stage in stages]:
        _train(group, deadline, more)
    if not dry_run and not (made / MANIFEST).is_file():
        assemble(
            [stage.run.output / "stage" for stage in stages],
            made,
            text_encoder=stages[0].run.text_encoder,
            name=config.output.absolute().name,
            recipe=config.recipe,
            licence=config.licence,
        )
    return made


def read_stages(config: CascadeRunConfig, folder: Path) -> list[StageJob]:
    """Read and check every stage's settings."""
    if Launch.read().world_size > 1:
        raise UserError(
            "The stages of a cascade are started with processes of their own; run the command "
            "without torchrun, or one stage's file with it."
        )
    found: list[StageJob] = []
    for stage in config.stages:
        file = folder / stage.config
        name = str(read_toml(file).get("stage", {}).get("name", ""))
        overrides = (*stage.overrides, f"output={config.output / _RUNS / name}")
        found.append(StageJob(file, overrides, PretrainConfig.read(file, overrides)))
    runs = [stage.run for stage in found]
    check_chain([run.stage for run in runs], runs[0].stage.unet.text_width, folder)
    for run in runs[1:]:
        if (run.text_encoder, run.embeddings) != (runs[0].text_encoder, runs[0].embeddings):
            raise UserError(
                f"Stage '{run.stage.name}' takes its text from elsewhere than "
                f"'{runs[0].stage.name}'; give both the same text_encoder and embeddings."
            )
    return found


def _train(group: Sequence[StageJob], deadline: float | None, more: Sequence[str]) -> None:
    """Train stages at once, each on its part of the machine."""
    parts = _parts(len(group))
    started = {
        stage.run.stage.name: subprocess.Popen(
            [*_command(stage, part, deadline), *more], env={**os.environ, **part.environment}
        )
        for stage, part in zip(group, parts, strict=True)
    }
    try:
        statuses = {name: process.wait() for name, process in started.items()}
    except BaseException:  # a signal: it is the stages' too, which save first
        for process in started.values():
            process.send_signal(signal.SIGTERM)
        for process in started.values():
            process.wait()
        raise
    for stage in group:
        name = stage.run.stage.name
        if statuses[name]:
            raise Ended(name, noted_status(stage.run.output) or statuses[name])


@dataclass(frozen=True)
class _Part:
    """A part of the machine: how many processes work on it, and what they are told."""

    processes: int
    environment: Mapping[str, str]


def _parts(count: int) -> list[_Part]:
    """Cut the machine's GPUs, or without one its cores, into parts."""
    gpus = torch.cuda.device_count()
    if gpus == 0:
        threads = max(1, torch.get_num_threads() // count)
        return [_Part(1, {"OMP_NUM_THREADS": str(threads)} if count > 1 else {})] * count
    if gpus < count:
        raise UserError(
            f"{count} stages side by side need as many GPUs and there are {gpus}; set "
            "side_by_side = false."
        )
    named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    ends = [gpus * part // count for part in range(count + 1)]
    return [
        _Part(end - first, {"CUDA_VISIBLE_DEVICES": ",".join(named[first:end])})
        for first, end in pairwise(ends)
    ]


def _command(stage: StageJob, part: _Part, deadline: float | None) -> list[str]:
    """Return the command that trains a stage on a part of the machine."""
    words = [sys.executable]
    if part.processes > 1:
        words += ["-m", "torch.distributed.run", "--standalone"]
        words.append(f"--nproc-per-node={part.processes}")
    words += ["-m", "cascade", "train", str(stage.file)]
    words += [word for override in stage.overrides for word in ("--set", override)]
    if deadline is not None:
        words += ["--minutes", f"{max(0.0, deadline - time.monotonic()) / 60:.3f}"]
    return words
