"""Launches that are planned once for all calls of a kind, and what they take of a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.errors import UserError
from cascade_bench.kernels.launches import bench_launches
from cascade_bench.settings import LaunchBenchConfig
from cascade_kernels import dispatch, launching
from cascade_kernels.launch_table import Launch
from cascade_kernels.launching import Plans, Program


class Kernel:
    """Notes how it is launched, as Triton's would be: with arguments by name, then by place."""

    arg_names = ("X", "n", "Y", "SCALE", "BLOCK", "STAGES")

    def __init__(self, interpreted: bool = False) -> None:
        self.launched: list[Any] = []
        self._interpreted = interpreted

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            self.launched.append((grid, arguments, named))
            return None if self._interpreted else self

        return run


def test_a_program_is_looked_up_once_and_then_given_everything_by_place() -> None:
    kernel = Kernel()
    program = Program(kernel, (7, 2), {"SCALE": 0.5, "UNKNOWN": 1}, Launch({"BLOCK": 64}, 4, 3))
    program("x", 9, "y")
    program("z", 9, "y")
    constants = {"SCALE": 0.5, "BLOCK": 64, "STAGES": 3}
    options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
    assert kernel.launched == [
        ((7, 2, 1), ("x", 9, "y"), constants | options),
        ((7, 2, 1), ("z", 9, "y", *constants.values()), {}),
    ]


def test_an_interpreted_program_is_looked_up_every_time() -> None:
    kernel = Kernel(interpreted=True)
    program = Program(kernel, (1,), {"SCALE": 1.0}, Launch({"BLOCK": 64}, 4, 1))
    program("x", 9, "y")
    program("x", 9, "y")
    assert len(kernel.launched) == 2
    assert kernel.launched[0] == kernel.launched[1]


def test_calls_of_one_kind_share_a_plan() -> None:
    made: list[Any] = []
    plans = Plans[tuple[Any, ...], list[Any]](lambda inputs: made.append(inputs) or [inputs])
    room = torch.zeros(80)
    first = plans.of((room[:16].view(4, 4), None, "silu"))
    assert plans.of((room[32:48].view(4, 4), None, "silu")) is first
    others: list[tuple[Tensor | str | None, ...]] = [
        (room[:16].view(4, 4).T, None, "silu"),  # strides
        (room[:16].view(2, 8), None, "silu"),  # shape
        (room[1:17].view(4, 4), None, "silu"),  # alignment
        (room[:16].view(4, 4).double(), None, "silu"),  # type
        (room[:16].view(4, 4), room, "silu"),  # what is there
        (room[:16].view(4, 4), None, "gelu"),  # settings
    ]
    for inputs in others:
        assert plans.of(inputs) is not first
    assert len(made) == 1 + len(others)


def test_a_plan_belongs_to_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = Plans[tuple[Any, ...], object](lambda _: object())
    inputs = (torch.zeros(4),)
    first = plans.of(inputs)
    other = dispatch.shipped_table("sm_80")
    monkeypatch.setattr(launching, "table", lambda device: other)
    second = plans.of(inputs)
    assert second is not first
    assert plans.of(inputs) is second
    monkeypatch.undo()
    assert plans.of(inputs) not in (first, second)


def test_plans_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_MOST", 3)
    plans = Plans[tuple[Any, ...], object](lambda _: object())
    for size in range(1, 20):
        plans.of((torch.zeros(size),))
        assert len(plans._made) <= 3


def test_a_call_that_is_refused_leaves_no_plan() -> None:
    def refuse(_: tuple[Any, ...]) -> object:
        raise ValueError("it does not fit")

    plans = Plans[tuple[Any, ...], object](refuse)
    for _ in range(2):
        with pytest.raises(ValueError, match="it does not fit"):
            plans.of((torch.zeros(1),))


def test_an_interpreter_s_launches_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="without TRITON_INTERPRET"):
        bench_launches(LaunchBenchConfig(), tmp_path)
    with pytest.raises(UserError, match="There is no configuration 'if-i-huge'"):
        bench_launches(LaunchBenchConfig(network="if-i-huge"), tmp_path)


@pytest.mark.slow
def test_launches_are_timed_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "cascade", "bench", "launches", "--network", "imagen-sr256"]
    ran = subprocess.run(
        [*command, "--rounds", "2", "--repeats", "1", "--output", str(tmp_path)],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (path,) = tmp_path.glob("*.json")
    cases = json.loads(path.read_text(encoding="utf-8"))["figures"]["cases"]
    assert {case["group"] for case in cases} == {"joint_attention", "group_norm_film_silu"}
    for case in cases:
        rows = {(row["mode"], row["provider"]): row["timing"] for row in case["rows"]}
        assert rows.keys() == {
            (mode, name) for mode in ("forward", "both") for name in ("triton", "nothing")
        }
        assert all(min(timing["cold"]) > 0 for timing in rows.values())
