"""Where the kernels run in a test, and what Triton's interpreter needs for bfloat16."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cascade_kernels import dispatch
from cascade_kernels.interpreter import interpreter_fault


@pytest.hookimpl(tryfirst=True)  # ahead of the choice by `-m`
def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Mark what runs kernels `gpu` where there is one: `pytest -m gpu` runs it there."""
    if torch.cuda.is_available():
        for item in items:
            if "kernel_device" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def interpreter() -> None:
    """Skip the test where Triton is not installed, or cannot interpret kernels."""
    pytest.importorskip("triton")
    if fault := interpreter_fault():
        pytest.skip(fault)


@pytest.fixture(scope="session")
def kernel_device(request: pytest.FixtureRequest) -> torch.device:
    """The GPU; without one the CPU, on which Triton interprets the kernels.

    Skips the test where Triton is not installed.
    """
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return torch.device("cuda")
    request.getfixturevalue("interpreter")
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_plans() -> None:
    """Have calls planned anew: a test may change what decides. Plans are of the table they saw."""
    dispatch.table.cache_clear()


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    """Give a GPU's memory back: what one worker's allocator holds the others lack."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def bfloat16_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the interpreter's bfloat16 right: dot products, and rounding to nearest even.

    It keeps bfloat16 as uint16, multiplies these bit patterns in `tl.dot`
    (triton-lang/triton#11584) and cuts float32 off instead of rounding it. Arithmetic on
    bfloat16 outside of `tl.dot` stays wrong: a kernel casts to float32 after every load.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    tl = pytest.importorskip("triton.language")
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.bfloat16 and target == tl.float32:
            return _to_float32(data).view(np.uint32)
        if source == tl.float32 and target == tl.bfloat16:
            return _to_bfloat16(data)
        return convert(data, source, target, rounding)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widen(a), widen(b), *rest)

    def widen(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return interpreter.TensorHandle(_to_float32(operand.data), tl.float32)

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def _to_float32(bits: Any) -> Any:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: Any) -> Any:
    """The bits of float32 values rounded to the nearest bfloat16, ties to the even one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
