"""`cascade dreambooth` killed at any moment and started again ends with the same files."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from cascade.config.dreambooth import DreamBoothConfig, Recipe
from cascade.dreambooth.personalise import personalise
from cascade.training.report import read_log

Settings = Callable[..., DreamBoothConfig]
STAGES = ("base16", "sr32")
PATIENCE = 300.0  # seconds; only a hang takes them


@pytest.fixture(scope="module")
def forked() -> Iterator[ForkServerContext]:
    """Starts processes that have the package imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cascade.dreambooth.personalise"])
    threads = os.environ.get("OMP_NUM_THREADS")
    # As many threads as here: sums cut into other parts round differently.
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    yield context
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = threads


def _class_images(folder: Path) -> int:
    return len(list((folder.parent / "class").glob("*/*.png")))


def _statuses(folder: Path, stage: str) -> int:
    return len(read_log(folder / "runs" / stage / "log.jsonl"))


# What has been reached when the process is killed, a little later.
MOMENTS: tuple[Callable[[Path], bool], ...] = (
    lambda folder: (folder / "run.json").exists(),
    lambda folder: _class_images(folder) >= 1,
    lambda folder: _class_images(folder) >= 3,
    lambda folder: _statuses(folder, "base16") >= 1,
    lambda folder: (folder / "runs/base16/checkpoints/.step-2.partial").exists(),
    lambda folder: (folder / "runs/base16/checkpoints/step-4").exists(),
    lambda folder: (folder / "base16").exists(),
    lambda folder: _statuses(folder, "sr32") >= 2,
    lambda folder: (folder / "sr32").exists(),
)


def _weights(folder: Path) -> list[bytes]:
    return [(folder / name / "model.safetensors").read_bytes() for name in STAGES]


@pytest.mark.slow
def test_killed_at_nine_moments_of_one_run(
    tmp_path: Path, whole: Path, settings: Settings, forked: ForkServerContext
) -> None:
    folder = tmp_path / "mine"
    config = settings(folder)
    delays = random.Random(os.getpid())
    cut_short = 0
    for moment in MOMENTS:
        process = forked.Process(target=personalise, args=(config,))
        process.start()
        end = time.monotonic() + PATIENCE
        while not moment(folder) and process.is_alive() and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        cut_short += process.exitcode == -signal.SIGKILL
    assert cut_short >= 5  # the last moments may be over before the kill comes
    personalise(config)
    assert _weights(folder) == _weights(whole)
    for name, steps in zip(STAGES, (5, 3), strict=True):
        log = read_log(folder / "runs" / name / "log.jsonl")
        assert [line["step"] for line in log] == list(range(1, steps + 1))
    sets = [
        {path.name: path.read_bytes() for path in (place.parent / "class").glob("*/*.png")}
        for place in (folder, whole)
    ]
    assert sets[0] == sets[1]


@pytest.mark.slow
def test_the_command_stopped_by_ctrl_c_goes_on(
    tmp_path: Path, tiny_cascade: Path, photos: Path, repository: Path
) -> None:
    flags = {
        "cascade": tiny_cascade,
        "instance-data-dir": photos,
        "class-noun": "dog",
        "output-dir": tmp_path / "cut",
        "class-data-dir": tmp_path / "class",
        "num-class-images": 2,
        "masks": "none",
        "stages": "base16",
        "max-train-steps": 40,
        "train-batch-size": 1,
        "checkpointing-steps": 1000,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "cascade", "dreambooth", *words]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    checkpoints = tmp_path / "cut" / "runs" / "base16"
    first = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    end = time.monotonic() + PATIENCE
    while not read_log(checkpoints / "log.jsonl") and time.monotonic() < end:
        time.sleep(0.005)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode == 130, errors.decode()
    assert b"the same command goes on from here" in errors
    assert b"Traceback" not in errors
    (saved,) = (checkpoints / "checkpoints").iterdir()
    assert 10 <= int(saved.name.removeprefix("step-")) < 40
    subprocess.run(command, env=environment, check=True, capture_output=True)
    run = json.loads((tmp_path / "cut" / "run.json").read_text())
    undisturbed = {
        "cascade": str(tiny_cascade),
        "instance_data_dir": photos,
        "output_dir": tmp_path / "whole",
        "class_data_dir": tmp_path / "class",
        **{name: run[name] for name in ("class_noun", "identifier", "stages", "seed", "recipe")},
    }
    personalise(DreamBoothConfig.model_validate(undisturbed))
    cut, whole = (
        (tmp_path / output / "base16" / "model.safetensors").read_bytes()
        for output in ("cut", "whole")
    )
    assert cut == whole


def test_a_kill_while_the_stage_is_published_costs_no_training(
    tmp_path: Path, settings: Settings, recipe: Recipe
) -> None:
    base = recipe.base.model_copy(update={"keep_checkpoints": True})
    patient = recipe.model_copy(update={"prior": None, "base": base})
    config = settings(tmp_path / "mine", patient, stages=("base16",))
    folder = personalise(config)
    weights = (folder / "base16" / "model.safetensors").read_bytes()
    (folder / "base16" / "model.safetensors").unlink()  # config.json is written first
    (folder / "cascade.json").unlink()
    log = (folder / "runs" / "base16" / "log.jsonl").read_bytes()
    personalise(config)
    assert (folder / "base16" / "model.safetensors").read_bytes() == weights
    assert (folder / "runs" / "base16" / "log.jsonl").read_bytes() == log
