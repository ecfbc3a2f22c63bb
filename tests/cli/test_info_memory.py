"""`cascade info --memory`: from a folder or a file, without weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.info.memory import encoder_bytes
from cascade.text.files import EncoderFiles

Command = Callable[..., Any]


def row(shown: str, name: str) -> list[str]:
    (line,) = (line for line in shown.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


@pytest.mark.slow
def test_every_stage_of_a_cascade(command: Command, tiny_cascade: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_cascade, tmp_path / "tiny")
    for weights in folder.glob("*/model.safetensors"):
        if weights.parent.name != "text":
            weights.unlink()
    shown = command("info", folder, "--memory", "--batch-size", 2)
    assert shown.status == 0
    assert row(shown.out, "weights") == ["1.0 MiB", "0.5 MiB"]
    assert row(shown.out, "fine-tuning: adamw") == ["2.0 MiB", "1.1 MiB"]
    assert "Text encoder" in shown.out
    larger = command("info", folder, "--memory", "--batch-size", 4)
    assert row(larger.out, "sampling: total") != row(shown.out, "sampling: total")


@pytest.mark.slow
def test_a_published_stage(command: Command, repository: Path) -> None:
    shown = command("info", repository / "configs" / "if-i-m.toml", "--memory")
    assert shown.status == 0
    assert row(shown.out, "weights") == ["1.38 GiB"]  # 371 605 830 values of four bytes
    assert "float32 17.74 GiB" in shown.out  # T5-XXL's encoder: 4.76 billion values


def test_a_run_s_file(command: Command, repository: Path) -> None:
    shown = command("info", repository / "configs" / "mini-sr256.toml", "--memory")
    assert shown.status == 0
    assert "sr256" in shown.out


def test_a_size_that_does_not_divide_is_refused(command: Command, tiny_cascade: Path) -> None:
    told = command("info", tiny_cascade, "--memory", "--size", 15)
    assert told.status == 2
    assert "give a multiple of 2" in told.err


def test_the_encoder_s_modes(tiny_cascade: Path) -> None:
    files = EncoderFiles.open(tiny_cascade / "text")
    held = encoder_bytes(files.shapes())
    assert held["float32"] == 2 * held["bfloat16"]
    assert held["bfloat16"] / 2 < held["int8"] < held["bfloat16"]
    assert held["layerwise"] < held["float32"]
