"""Versions with which Triton interprets nothing are told apart from those with which it does."""

import numpy as np
import pytest

from cascade_kernels.interpreter import interpreter_fault

triton = pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("ours", "numpy", "works"),
    [
        ("3.6.0", "2.3.5", True),
        ("3.6.0", "2.4.0", False),
        ("3.6.0+git9844da95", "2.5.0.dev0", False),
        ("3.7.0", "2.4.6", True),
    ],
)
def test_old_interpreters_need_old_arrays(
    monkeypatch: pytest.MonkeyPatch, ours: str, numpy: str, works: bool
) -> None:
    monkeypatch.setattr(triton, "__version__", ours)
    monkeypatch.setattr(np, "__version__", numpy)
    fault = interpreter_fault()
    assert fault.endswith("install triton>=3.7 or numpy<2.4") is not works
    assert (f"triton {ours} does not run with numpy {numpy}" in fault) is not works
