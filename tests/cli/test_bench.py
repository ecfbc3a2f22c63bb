"""`cascade bench kernels` without a GPU, and without a checkout."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Command = Callable[..., Any]


def test_without_a_gpu_it_says_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command("bench", "kernels", "--op", "joint_attention")
    assert done.status == 2
    assert "needs a CUDA device and finds none" in done.err
    (measured,) = re.findall(r"measured on nvidia-h200 in (\S+README\.md)\.", done.err)
    assert "### NVIDIA H200" in Path(measured).read_text(encoding="utf-8")


def test_a_wrong_name_is_told_without_a_gpu(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command("bench", "kernels", "--op", "frobnicate")
    assert done.status == 2
    assert "frobnicate" in done.err


def test_an_installed_package_has_no_benchmark(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "bench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bench", None)  # importing it then fails as if it were absent
    done = command("bench", "kernels")
    assert done.status == 2
    assert "run it from a checkout" in done.err


def test_its_flags_reach_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[object, ...]] = []

    def bench_kernels(names: object, wanted: object, output: object, **switches: object) -> str:
        received.append((names, wanted, output, switches))
        return "done"

    monkeypatch.setattr("bench.command.bench_kernels", bench_kernels)
    done = command(
        "bench", "kernels", "--op", "sampler_step", "--shapes", "ddim", "--quick", "--tune"
    )
    assert done.status == 0
    assert "done" in done.out
    assert received == [
        (["sampler_step"], ["ddim"], None, {"quick": True, "tuning": True}),
    ]
