"""Training `mini`'s stages in calls of a few minutes: how fast, how long, how far."""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch.distributed.checkpoint as dcp

from bench.device import described, state
from cascade.cli.train import TIME_IS_UP
from cascade.config.train import PretrainConfig
from cascade.data.captioned import CaptionedArray
from cascade.files import write_bytes
from cascade.stage import Stage, read_json
from cascade.train.report import read_log
from gpu.pieces import Context, FailedError, IncompleteError
from gpu.pretrain_plan import Job, read_recipe, recipe, require
from gpu.program import run_program, tail

AS_TRAINED: Final = "as trained"
_VARIANTS = {
    "eager": ("train.compile=false", "train.kernels=reference"),
    "eager, kernels": ("train.compile=false", "train.kernels=triton"),
}
_PROBE_ROWS = 2048  # pictures of a probe's dataset: its captions are embedded in a second
_SAFE = 0.9  # of the measured speed is planned with: checkpoints and validation take time too
_ROUND = 100  # planned steps are a multiple of this
_LEAST_MINUTES = 0.75  # a shorter run spends most of its time on its start


def throughput(stage: str, job: Job, context: Context) -> str:
    """Measure images a second of short runs: as it is trained, without compiling, with kernels.

    Raises:
        FailedError: a run as it will be trained fails.
    """
    require(job.dataset(stage), "prepare")
    before = state(context.device)
    excerpt = _excerpt(job.dataset(stage), job.store / "probe" / "data")
    variants = {AS_TRAINED: ()} if context.dry_run else {AS_TRAINED: (), **_VARIANTS}
    found: dict[str, dict[str, Any]] = {}
    for name, settings in variants.items():
        told = [*job.told(stage), *settings]
        found[name] = {"settings": told} | _probe(stage, excerpt, told, job, context)
    record = {
        "stage": stage,
        "dry_run": context.dry_run,
        "batch": read_recipe(stage, job.told(stage)).train.batch_size,
        "steps": job.plan.probe_steps,
        "runs": found,
        "state": [before, state(context.device)],
        "environment": described(context.device, context.commit),
    }
    write_bytes((json.dumps(record, indent=1) + "\n").encode(), _throughput_path(stage, job))
    if "failed" in found[AS_TRAINED]:
        raise FailedError(found[AS_TRAINED]["failed"])
    return ", ".join(
        f"{name} {run['images_per_second']:.0f}/s" if "failed" not in run else f"{name} failed"
        for name, run in found.items()
    )


def read_throughput(stage: str, job: Job) -> dict[str, Any]:
    """What `throughput` found."""
    return dict(read_json(_throughput_path(stage, job)))


def training(stage: str, job: Job, context: Context, stopped: Callable[[], object]) -> str:
    """Train a stage as far as the time allows.

    Args:
        stage: its name.
        job: of which it is part.
        context: tells the time.
        stopped: called where training stopped before its end.

    Raises:
        IncompleteError: the time was up first.
        FailedError: training failed.
    """
    require(job.dataset(stage), "prepare")
    require(_throughput_path(stage, job), f"throughput {stage}")
    run = job.run(stage)
    if not newest_step(run):
        measured = _as_trained(stage, job)
        if measured["settings"] != job.told(stage):
            throughput(stage, job, context)  # what was measured was another run
        elif "failed" in measured:
            raise IncompleteError(f"waits for: throughput {stage}")
    settings = training_settings(stage, job)
    steps = read_recipe(stage, settings).train.steps
    while not (job.trained(stage) / "model.safetensors").is_file():
        begun = _clear_unbegun(run)
        minutes = context.left - job.plan.reserve[stage]
        if context.dry_run and not begun:
            minutes = 0.0  # one step: stopping and going on is what a rehearsal is to show
        elif minutes < _LEAST_MINUTES:
            raise IncompleteError(f"{newest_step(run)} of {steps} steps are done")
        done = _cascade_train(stage, settings, minutes, job, context)
        if done.returncode == TIME_IS_UP:
            stopped()
        elif done.returncode != 0:
            raise FailedError(_explained(done, read_recipe(stage, settings)))
    last = read_log(run / "log.jsonl")[-1]
    return f"{steps} steps, loss {last['loss']:.4f}, {last['images_per_second']:.0f} images/s"


def training_settings(stage: str, job: Job) -> list[str]:
    """Everything on top of the recipe; the steps, where nothing says them, fill the minutes.

    A run that has begun keeps its steps, whatever the speed is now.
    """
    settings = [f"data.folder={job.dataset(stage)}", f"output={job.run(stage)}", *job.told(stage)]
    note = job.run(stage) / "run.json"
    if job.says(stage, "train.steps"):
        return settings
    if newest_step(job.run(stage)):
        held = PretrainConfig.parse(read_json(note), str(note))
        return [*settings, f"train.steps={held.train.steps}"]
    rate = _as_trained(stage, job)["images_per_second"]
    batch = read_recipe(stage, settings).train.batch_size
    fitting = _SAFE * rate * 60 * job.plan.minutes[stage] / batch
    return [*settings, f"train.steps={max(1, int(fitting / _ROUND)) * _ROUND}"]


def stage_so_far(run: Path) -> Stage:
    """The averaged weights of a run's newest checkpoint."""
    config = PretrainConfig.parse(read_json(run / "run.json"), str(run / "run.json"))
    stage = Stage.build(config.stage)
    held = {"ema": stage.network.state_dict()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(held, checkpoint_id=run / "checkpoints" / f"step-{newest_step(run)}")
    stage.network.load_state_dict(held["ema"])
    return stage


def newest_step(run: Path) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    found = (run / "checkpoints").glob("step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def _as_trained(stage: str, job: Job) -> dict[str, Any]:
    return dict(read_throughput(stage, job)["runs"][AS_TRAINED])


def _clear_unbegun(run: Path) -> bool:
    """Whether a run has a checkpoint; one without is removed, since it would hold its settings."""
    if newest_step(run):
        return True
    shutil.rmtree(run, ignore_errors=True)
    return False


def _cascade_train(
    stage: str, settings: Sequence[str], minutes: float, job: Job, context: Context
) -> subprocess.CompletedProcess[str]:
    """A process of its own: what fails there takes no other piece along."""
    command = [sys.executable, "-m", "cascade", "train", str(recipe(stage))]
    command += ["--minutes", f"{minutes:.3f}"]
    for setting in settings:
        command += ["--set", setting]
    # What is compiled in one call is found again in the next.
    return run_program(
        command, context, {"TORCHINDUCTOR_CACHE_DIR": str(job.store.resolve() / "compiled")}
    )


def _probe(
    stage: str, data: Path, settings: Sequence[str], job: Job, context: Context
) -> dict[str, Any]:
    """The last status of a short run, or why there is none."""
    run, steps = job.store / "probe" / "run", job.plan.probe_steps
    shutil.rmtree(run, ignore_errors=True)
    short = [
        *settings,
        f"data.folder={data}",
        f"output={run}",
        f"train.steps={steps}",
        f"train.log_every={max(1, steps // 3)}",  # the first status holds the compiling
        "validation.prompts=[]",
    ]
    done = _cascade_train(stage, short, context.left, job, context)
    if done.returncode == TIME_IS_UP:
        raise IncompleteError("the time was up while the speed was measured")
    if done.returncode != 0:
        return {"failed": _explained(done, read_recipe(stage, short))}
    return dict(read_log(run / "log.jsonl")[-1])


def _explained(done: subprocess.CompletedProcess[str], config: PretrainConfig) -> str:
    """Why training failed, and what to do where the compiler is to blame."""
    compiler = any(name in done.stderr for name in ("torch/_dynamo", "torch/_inductor"))
    if config.train.compile and compiler:
        return f"torch.compile fails here; go on with --set train.compile=false; {tail(done)}"
    return tail(done)


def _excerpt(dataset: Path, folder: Path) -> Path:
    """The first pictures of a dataset as one of its own."""
    data = CaptionedArray.open(dataset)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", data.images[:_PROBE_ROWS])
    lines = (json.dumps(captions) for captions in data.captions[:_PROBE_ROWS])
    write_bytes(("\n".join(lines) + "\n").encode(), folder / "captions.jsonl")
    return folder


def _throughput_path(stage: str, job: Job) -> Path:
    return job.results / f"throughput-{stage}.json"
