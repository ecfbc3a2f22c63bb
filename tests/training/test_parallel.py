"""However processes share a network, it is trained as by one; killed ones go on, also as others.

A row that ruins a step on one of them is left out by all.
"""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cascade.training.report import read_log

pytestmark = [pytest.mark.dist, pytest.mark.slow]

Start = Callable[..., int]

# Adam's eps is large: beside the usual one, gradients that differ in their last bit around 0 move
# weights in opposite directions, and no two ways to sum could be compared.
RUN: dict[str, Any] = {
    "steps": 3,
    "batch_size": 12,
    "log_every": 1,
    "checkpoint_every": 2,
    "optimizer": {"learning_rate": 1e-2, "eps": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.2},
    "ema_decay": 0.9,
    "averages": [{"half_life": 30}, {"std": 0.1}],
}
WORLDS = (1, 2, 3, 4)
SEEDS = 3
# Rows that the last process works on, of the fourth batch and the fifth, and their weights.
SPOILED = [(47, 1e4), (59, math.nan)]
# What is done about them, and the steps that they are batches of: after the second comes the third.
ACTIONS = {"skip": (4, 5), "rollback": (4, 3)}


def _strategies(world: int) -> dict[str, dict[str, object]]:
    ddp, fsdp = {"strategy": "ddp"}, {"strategy": "fsdp"}
    of: dict[int, dict[str, dict[str, object]]] = {
        1: {"ddp": {}},
        2: {"ddp": {**ddp}, "gathered": {**fsdp, "reshard_after_forward": False}},
        3: {"ddp": {**ddp}, "fsdp": {**fsdp}},
        4: {"fsdp": {**fsdp}, "hsdp": {"strategy": "hsdp", "replicas": 2}},
    }
    return of[world]


def _drawn(seed: int) -> dict[str, Any]:
    """A random way to train a random network."""
    draw = random.Random(seed)
    levels = draw.choice([2, 3])
    strided = draw.random() < 0.4
    unet: dict[str, Any] = {
        "channels": [8 * draw.choice([1, 2, 3]) for _ in range(levels)],
        "blocks": [draw.choice([1, 2]) for _ in range(levels)],
        "attention": [draw.choice(["none", "self", "cross", "joint"]) for _ in range(levels)],
        "activation": draw.choice(["silu", "gelu"]),
        "resample": "convolution" if strided else "residual",
    }
    run = {
        "batch_size": 24,
        "gradient_accumulation_steps": draw.choice([1, 2]),
        "gradient_checkpointing": draw.choice(["none", "selective", "full"]),
        "noise": draw.choice(["cpu", "device"]),
        "stratified": draw.random() < 0.5,
    }
    return {"stage": {"unet": unet}, "run": run}


def _jobs(world: int) -> list[dict[str, Any]]:
    """What one start of so many processes trains."""
    found: list[dict[str, Any]] = []
    for name, parallel in _strategies(world).items():
        run = {**RUN, "parallel": parallel}
        found += [
            {"name": f"{name}-{world}", "run": run},
            {"name": f"{name}-{world}-cut", "run": run, "stops": True},
            {"name": f"{name}-{world}-cut", "run": run},
        ]
        for action in ACTIONS:
            guard = {"action": action, "spike": 20.0, "window": 2}
            guarded = {"run": {**run, "steps": 6, "guard": guard}, "spoiled": SPOILED}
            found.append({"name": f"{action}-{name}-{world}", **guarded})
    for seed in range(SEEDS):
        drawn = _drawn(seed)
        strategy = "ddp" if world == 1 else random.Random(seed).choice(["fsdp", "hsdp"])
        run = {**RUN, **drawn["run"], "parallel": {"strategy": strategy}}
        if strategy == "hsdp":
            run["parallel"]["replicas"] = 2 if world == 4 else 1
        found.append({"name": f"drawn{seed}-{world}", "stage": drawn["stage"], "run": run})
    return found


# By how many processes, sharing how, one run is taken on from step to step.
CHAIN: tuple[tuple[int, dict[str, object]], ...] = (
    (4, {"strategy": "hsdp", "replicas": 2}),
    (2, {"strategy": "ddp"}),
    (1, {}),
    (3, {"strategy": "fsdp"}),
)


@pytest.fixture(scope="module")
def start(repository: Path) -> Start:
    """Run jobs in a folder by a number of processes; returns torchrun's status."""

    def start(folder: Path, world: int, jobs: list[dict[str, Any]], restarts: int = 0) -> int:
        listed = folder / f"jobs-{world}.json"
        listed.write_text(json.dumps(jobs))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={world}", f"--max-restarts={restarts}"]
        worker = repository / "tests" / "training" / "worker.py"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, str(worker), str(listed)], env=environment, timeout=900
        ).returncode

    return start


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    """A folder of every job, by every number of processes."""
    folder = tmp_path_factory.mktemp("trained")
    for steps, (world, parallel) in enumerate(CHAIN, start=1):
        link = {"name": "chain", "run": {**RUN, "steps": steps, "parallel": parallel}}
        assert start(folder, world, [*_jobs(world), link]) == 0
    return folder


def _close(folder: Path, ours: str, theirs: str) -> None:
    """The same rows summed in another order, in single precision, for a few steps."""
    logs = [read_log(folder / name / "log.jsonl") for name in (ours, theirs)]
    for mine, other in zip(*logs, strict=True):
        # A step that was left out has no loss.
        assert mine.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert mine["images"] == other["images"]
    weights = [load_file(folder / f"{name}.safetensors") for name in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        # A step moves a weight by up to 1e-2.
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS[1:])
def test_every_way_to_share_is_one_process(trained: Path, world: int) -> None:
    for name in _strategies(world):
        _close(trained, f"{name}-{world}", "ddp-1")


@pytest.mark.parametrize("world", WORLDS)
def test_stopped_and_gone_on_by_as_many_every_bit_is_the_same(trained: Path, world: int) -> None:
    for name in _strategies(world):
        whole, cut = (
            (trained / f"{name}-{world}{end}.safetensors").read_bytes() for end in ("", "-cut")
        )
        assert whole == cut


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("action", ACTIONS)
def test_steps_that_one_process_ruins_are_left_out_by_all(
    trained: Path, world: int, action: str
) -> None:
    for name in _strategies(world):
        _close(trained, f"{action}-{name}-{world}", f"{action}-ddp-1")
        incidents = trained / f"{action}-{name}-{world}" / "incidents"
        for batch, step in enumerate(ACTIONS[action], start=3):
            place = incidents / f"step-{step:06d}-images-{12 * batch}"
            files = [place / f"rank-{rank}.json" for rank in range(world)]
            told = [json.loads(file.read_text()) for file in files]
            rows = [row for one in told for row in one["rows"]]
            positions = sorted(row["position"] for row in rows)
            assert positions == [*range(12 * batch, 12 * batch + 12)]
            ruined = [(row["position"], row["weight"]) for row in rows if row["weight"] != 1]
            assert str(ruined) == str([SPOILED[batch - 3]])
            assert len({(str(one["grad_norm"]), one["median"]) for one in told}) == 1
        assert len(list(incidents.iterdir())) == 2


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_networks_and_settings(trained: Path, seed: int) -> None:
    for world in WORLDS[1:]:
        _close(trained, f"drawn{seed}-{world}", f"drawn{seed}-1")


def test_a_run_goes_from_hand_to_hand(trained: Path, tmp_path: Path, start: Start) -> None:
    steps = len(CHAIN)
    assert start(tmp_path, 1, [{"name": "alone", "run": {**RUN, "steps": steps}}]) == 0
    for name in ("alone", "alone.safetensors"):
        shutil.move(tmp_path / name, trained / name)
    _close(trained, "chain", "alone")


@pytest.mark.parametrize(
    ("strategy", "kills"),
    [("fsdp", [(1, 4), (2, "save"), (0, "save"), (2, 32)]), ("ddp", [(2, "save")])],
)
def test_processes_killed_anywhere_lose_nothing(
    trained: Path, tmp_path: Path, start: Start, strategy: str, kills: list[object]
) -> None:
    job = {"name": "killed", "run": {**RUN, "parallel": {"strategy": strategy}}}
    for killed in kills:  # (rank, position): in steps 1, 2, 2 and 3
        assert start(tmp_path, 3, [{**job, "killed": killed}]) != 0
    assert start(tmp_path, 3, [job]) == 0
    undisturbed = (trained / f"{strategy}-3.safetensors").read_bytes()
    assert (tmp_path / "killed.safetensors").read_bytes() == undisturbed
    kept = json.loads((tmp_path / "killed" / "checkpoints" / "step-3" / "config.json").read_text())
    assert kept["name"] == "base8"
