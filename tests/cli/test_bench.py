"""`cascade bench` without a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.results import Result
from cascade_bench.settings import BenchConfig

Command = Callable[..., Any]


def test_without_a_gpu_it_says_so(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lacks = "needs a CUDA device and finds none"
    for name, value, told in (
        ("--op", "joint_attention", lacks),
        ("--tune", None, lacks),
        ("--op", "frobnicate", "frobnicate"),
    ):
        words = (name, value) if value else (name,)
        done = command("bench", "kernels", *words, "--output", tmp_path / "out")
        assert done.status == 2
        assert told in done.err
        assert not (tmp_path / "out").exists()


def test_its_flags_reach_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[object, ...]] = []

    def bench_kernels(*given: object) -> tuple[Result, bool]:
        received.append(given)
        return Result.of("bench kernels", BenchConfig(), {"cases": [], "peaks": None}), False

    monkeypatch.setattr("cascade_bench.kernels.command.bench_kernels", bench_kernels)
    flags = ("--shapes", "ddim", "--quick", "--budget", "2.5", "--rounds", "4")
    done = command("bench", "kernels", "--op", "sampler_step", *flags)
    assert done.status == 3
    assert "the same command goes on from here" in done.out
    config = BenchConfig(rounds=4, budget=2.5, device="cuda")
    assert received == [(["sampler_step"], ["ddim"], Path("runs/bench"), config, True)]
