"""`cascade bench memory`: what processes of a run hold, beside what its plan says they do."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from cascade.config.train import TrainConfig
from cascade.environment import reset_peak_memory, usable_device
from cascade.errors import UserError
from cascade.progress import amount, say
from cascade.results import Result
from cascade.stage import meta_network
from cascade.tables import Table
from cascade.training.distributed import Processes
from cascade.training.footprint import activation_bytes, held
from cascade.training.parallel import batch_share
from cascade_bench.device import facts
from cascade_bench.few_steps import STEPS, Job
from cascade_bench.kernels.shapes import stage_of
from cascade_bench.networks import narrowed
from cascade_bench.settings import MemoryBenchConfig

# Else glibc keeps what is freed: one of four processes was seen to hold 2.7 times what is alive.
_FREED_AT_ONCE: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def bench_memory(config: MemoryBenchConfig, output: Path) -> tuple[Result, Table]:
    """Train by every number of processes; the record is `memory` in `output`.

    Raises:
        UserError: the processes do not divide into replicas, or cannot be run or weighed here.
    """
    device = torch.device(usable_device(None))
    stage = narrowed(stage_of(config.network), config.width, config.side)
    jobs = {number: Job(stage=stage, run=run_of(config, number)) for number in config.processes}
    plans = {number: planned(job, number, device) for number, job in jobs.items()}
    _require_devices(device, max(jobs))
    reset_peak_memory(device)  # refuses where the processes could not
    runs: list[dict[str, Any]] = []
    for number, job in jobs.items():
        taken, plan = measured(job, number), sum(plans[number].values())
        say(f"Of {number}, a process takes {amount(max(taken))}; its plan says {amount(plan)}.")
        ratio = max(taken) / plan
        runs.append({"processes": number, "plan": plans[number], "measured": taken, "ratio": ratio})
    weights = sum(parameter.numel() for parameter in meta_network(stage).parameters())
    figures = {"weights": weights, "runs": runs}
    result = Result.of("bench memory", config, figures, also=facts(device))
    table = _table(weights, runs, config)
    result.write(output / "memory", [table])
    return result, table


def run_of(config: MemoryBenchConfig, number: int) -> TrainConfig:
    """Return the run of so many processes."""
    return TrainConfig(
        steps=STEPS + 1,
        batch_size=number * config.batch,
        ema_decay=0.999,
        parallel=config.parallel,
        precision=config.precision,
        gradient_checkpointing=config.gradient_checkpointing,
    )


def planned(job: Job, number: int, device: torch.device) -> dict[str, int]:
    """Return the bytes that the first of so many processes takes of a device, by arithmetic.

    Raises:
        UserError: they do not divide into the replicas.
    """
    processes = Processes(0, number, torch.device("cpu"), number)
    rows = batch_share(job.run, processes).micro_batch
    activations = activation_bytes(job.stage, job.run, processes, rows)
    parts = asdict(held(job.stage, job.run, processes, activations))
    if device.type != "cpu":
        del parts["host"]
    return parts


def measured(job: Job, number: int) -> list[int]:
    """Let so many fresh processes take a few steps; return the bytes that each took."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={number}", "-m", "cascade_bench.few_steps"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **_FREED_AT_ONCE}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(job.model_dump_json(), encoding="utf-8")
        done = subprocess.run(
            [*command, str(path)], env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
    if done.returncode != 0:
        raise UserError(f"With --processes {number} nothing was trained; the error is above.")
    taken: list[int] = json.loads(done.stdout.splitlines()[-1])
    return taken


def _require_devices(device: torch.device, most: int) -> None:
    if device.type == "cuda" and most > torch.cuda.device_count():
        raise UserError(
            f"{most} processes need a GPU each and there are {torch.cuda.device_count()}; give "
            "fewer --processes."
        )


def _table(weights: int, runs: Sequence[dict[str, Any]], config: MemoryBenchConfig) -> Table:
    parts = [name for name in runs[0]["plan"] if any(run["plan"][name] for run in runs)]
    head = ["processes", *parts, "plan", "measured", "measured / plan"]
    rows = []
    for run in runs:
        plan = run["plan"]
        sizes = [*(plan[part] for part in parts), sum(plan.values()), max(run["measured"])]
        rows.append([run["processes"], *map(_mebibytes, sizes), f"{run['ratio']:.3f}"])
    told = (
        f"{config.network}, {weights:,} weights, {config.batch} rows a process, "
        f"{config.parallel.strategy}, {config.precision}, AdamW, an average. Measured is the most "
        "that one of the processes took for the network and its training, from the second step on. "
        "Sizes in MiB."
    )
    return Table(head, rows, told)


def _mebibytes(size: int) -> int:
    return round(size / 2**20)
