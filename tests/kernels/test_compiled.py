"""The rows of the launch tables compiled for their architectures, without a device.

The compilers run in processes of their own, because this one interprets kernels.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_bench.kernels.compiling import Variant, compile_variant
from cascade_kernels.dispatch import shipped_table
from cascade_kernels.launch_table import Launch

pytest.importorskip("triton")

HERE = Path(__file__).parent


def run(script: str, *arguments: str) -> str:
    """What a script beside this file writes, outside of the interpreter's mode."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(architecture: str, *only: str) -> list[dict[str, Any]]:
    printed = run("compile_rows.py", architecture, *only)
    return [json.loads(line) for line in printed.splitlines()]


def faults(row: dict[str, Any]) -> list[str]:
    """The defects that count.

    Products of float32 matrices are exact and run beside the matrix units, unrolled: they spill at
    any size of block. They serve tests and small models, and no route takes them unasked.
    """
    exact = row["variant"].startswith("joint_attention") and "/fp32/" in row["variant"]
    return [x for x in row["defects"] if not (exact and x.startswith("spills"))]


@pytest.mark.slow
def test_every_row_of_hopper_compiles_without_defects() -> None:
    report = rows("sm_90")
    assert {row["variant"]: faults(row) for row in report if faults(row)} == {}
    compiled = {row["variant"].partition("/")[0] for row in report}
    assert compiled == shipped_table("sm_90").launches.keys()
    # Whole warp groups multiply, in every product; but for dQ^T of narrow heads in one launch, and
    # exact products, which run beside the matrix units.
    assert all(
        row["matrix"] == ["wgmma.mma_async"]
        for row in report
        if re.search(r"attention.*/bf16/d(64|80|128)|attention(?!.*small).*/bf16/", row["variant"])
    )
    norms = [row for row in report if "norm" in row["variant"] and "/bf16/all" in row["variant"]]
    # Whatever the group; the combination of partial sums reads no image.
    assert {row["image load"] for row in norms if "finalize" not in row["variant"]} == {16}
    # While one program waits for memory, or for its own sums, another one computes.
    assert [row["variant"] for row in norms if row["programs"] < 2] == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_100", "gfx942"])
def test_common_rows_of_the_others_compile_without_defects(architecture: str) -> None:
    # Every row of every architecture takes minutes; these are the ones that training runs.
    common = r"attention.*/bf16/d64/|norm.*/bf16/all(64)?/.*C64/|step_whole/0"
    report = rows(architecture, common)
    assert {row["variant"]: faults(row) for row in report if faults(row)} == {}
    assert len(report) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_lint_finds_what_it_is_for(architecture: str) -> None:
    found = json.loads(run("hazards.py", architecture))
    assert found.pop("sound") == []
    expected = {
        "transposed_accumulator": "transposes what depends on a dot product, hazards.py:",
        "transposed_after_the_loop": "transposes what depends on a dot product, hazards.py:",
        "own_transpose": "multiplies a value with its own transpose, hazards.py:",
        "double": "computes in double precision",
    }
    if architecture != "gfx942":  # it has more registers, and copies to its LDS synchronously
        expected["nothing_to_pipeline"] = "has several stages but no asynchronous copy"
        expected["spilling"] = "spills "
        expected["fused"] = "rounds a product and a sum at once"
    for kernel, defect in expected.items():
        assert [x for x in found[kernel] if x.startswith(defect)], (kernel, found[kernel])


def test_digits_are_compiled_as_they_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = pytest.importorskip("cascade_kernels.sampler_step.forward")
    from cascade_bench.kernels.variants import variants

    names, launched, described = ("predict", "digit", "pick"), set(), set()
    switches = {"BITS", "SHIFT", "BINS", "FIRST", "LAST"}

    def record(kernel: str, constants: dict[str, Any], into: set[Any]) -> None:
        into.add((kernel, frozenset(x for x in constants.items() if x[0] in switches)))

    class Recorder:
        def __init__(self, kernel: str) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            return lambda *_, **constants: record(self.kernel, constants, launched)

    for variant in variants(shipped_table("sm_90")):
        kernel = variant.name.partition("/")[0].removeprefix("sampler_step_")
        if kernel in names:
            record(kernel, dict(variant.constants), described)
    for name in names:
        monkeypatch.setattr(forward, f"sampler_step_{name}", Recorder(name))
    image = torch.zeros(1, 3, 8, 8)
    forward._scales(image, image, image, (), (0, 0.0, 1.0), False)
    assert described == launched


def test_interpreted_kernels_cannot_be_compiled() -> None:
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted here")
    nothing = Variant("nothing", None, {}, {}, frozenset(), Launch({}, 4, 1))
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        compile_variant(nothing, "sm_90")
