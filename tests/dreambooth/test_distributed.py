"""`torchrun -m cascade dreambooth` on two processes does what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cascade.config.dreambooth import DreamBoothConfig
from cascade.dreambooth.personalise import personalise
from cascade.training.report import read_log


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_are_one(
    tmp_path: Path, tiny_cascade: Path, photos_with_masks: Path, repository: Path
) -> None:
    flags = {
        "cascade": tiny_cascade,
        "instance-data-dir": photos_with_masks,
        "class-noun": "dog",
        "identifier": "zug",
        "output-dir": tmp_path / "two",
        "class-data-dir": tmp_path / "class-two",
        "num-class-images": 6,
        "sample-batch-size": 2,
        "scene-share": 0.5,
        "num-scene-images": 4,
        "stages": "sr32",
        "sr-max-train-steps": 4,
        "sr-train-batch-size": 2,
        "gradient-accumulation-steps": 2,
        "sr-learning-rate": 1e-2,
        "adam-epsilon": 1e-2,
        "checkpointing-steps": 2,
        "mixed-precision": "no",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", "-m", "cascade", "dreambooth", *words]
    command += ["--sr-prior-preservation", "--sr-scenes"]
    command += ["--set", "recipe.super_resolution.parallel.strategy=fsdp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=300)

    run = json.loads((tmp_path / "two" / "run.json").read_text())
    config = DreamBoothConfig.model_validate(
        {
            "cascade": str(tiny_cascade),
            "instance_data_dir": photos_with_masks,
            "output_dir": tmp_path / "one",
            "class_data_dir": tmp_path / "class-one",
            **{name: run[name] for name in ("class_noun", "identifier", "stages", "seed")},
            "recipe": run["recipe"],
        }
    )
    assert config.recipe.super_resolution.batch_size == 8  # 2 photos x 2 parts x 2 processes
    personalise(config)

    sets = [
        {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*.png")}
        for folder in (tmp_path / "class-one", tmp_path / "class-two")
    ]
    assert len(sets[0]) == 6 + 4
    assert sets[0] == sets[1]
    logs = [read_log(tmp_path / name / "runs" / "sr32" / "log.jsonl") for name in ("one", "two")]
    assert [line["step"] for line in logs[1]] == [4]
    for alone, together in zip(*logs, strict=True):
        for term in ("loss", "loss/instance", "loss/prior"):
            # The same rows summed in another order, in single precision, for a few steps.
            assert together[term] == pytest.approx(alone[term], rel=1e-4)
    one, two = (
        load_file(tmp_path / name / "sr32" / "model.safetensors") for name in ("one", "two")
    )
    for name, value in one.items():
        # A step moves a weight by up to 1e-2; the sums differ in their last bits.
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-5)
    untouched = [
        (folder / "base16" / "model.safetensors").read_bytes()
        for folder in (tiny_cascade, tmp_path / "two")
    ]
    assert untouched[0] == untouched[1]
