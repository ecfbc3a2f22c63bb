"""A target that cannot be met is refused before anything is built."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cascade.errors import UserError
from cascade_export.engines.tensorrt import targets
from cascade_export.engines.tensorrt.targets import Gpu, load_module, resolve_targets
from cascade_export.graph.numerics import Numerics, Precision, Quantization
from cascade_export.settings import parse_targets


def numerics(precision: Precision, quantization: Quantization = "none") -> Numerics:
    return Numerics(precision=precision, quantization=quantization)


def test_targets_are_read_from_a_list() -> None:
    assert parse_targets("sm120, SM89,sm89") == (89, 120)


@pytest.mark.parametrize("text", ["", "89", "sm8", "sm89,", "ampere"])
def test_what_is_no_target_is_named(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a GPU target; write targets as in sm89,sm120\."):
        parse_targets(text)


def test_without_a_wish_rtx_builds_for_its_default() -> None:
    assert resolve_targets("tensorrt-rtx", (), numerics("bf16")) == (80, 86, 89, 120)
    assert resolve_targets("tensorrt-rtx", (120, 75), numerics("fp16", "int8")) == (75, 120)


def test_types_that_a_gpu_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"sm75 cannot compute in bf16, which needs sm80"):
        resolve_targets("tensorrt-rtx", (75, 89), numerics("bf16"))
    with pytest.raises(UserError, match=r"sm86 cannot compute in fp8, which needs sm89"):
        resolve_targets("tensorrt-rtx", (86, 89), numerics("fp16", "fp8"))
    assert resolve_targets("tensorrt-rtx", (89,), numerics("fp16", "fp8")) == (89,)


@pytest.mark.parametrize("unknown", [90, 100, 61])
def test_rtx_has_no_data_centre_targets(unknown: int) -> None:
    with pytest.raises(UserError, match=rf"does not build for sm{unknown}; choose among sm75, "):
        resolve_targets("tensorrt-rtx", (unknown,), numerics("fp16"))


def test_tensorrt_builds_for_the_gpu_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "gpu_target", lambda: 90)
    assert resolve_targets("tensorrt", (), numerics("bf16")) == (90,)
    assert resolve_targets("tensorrt", (90,), numerics("fp16", "fp8")) == (90,)
    with pytest.raises(UserError, match=r"this machine's GPU, sm90, not for sm89"):
        resolve_targets("tensorrt", (89, 90), numerics("fp16"))
    monkeypatch.setattr(targets, "gpu_target", lambda: None)
    with pytest.raises(UserError, match=r"this machine has none; export there"):
        resolve_targets("tensorrt", (), numerics("fp16"))


def test_a_gpu_is_named_by_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (12, 1))
    assert targets.gpu_target() == 121
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert targets.gpu_target() is None


def test_a_gpu_is_told_with_its_driver_and_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert targets.this_gpu() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(targets, "_DRIVER", tmp_path / "version")
    assert targets.this_gpu() == Gpu(model="NVIDIA A100", driver="unknown", cuda="12.8")
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    )
    assert str(targets.this_gpu()) == "NVIDIA A100 (driver 550.54.15, CUDA 12.8)"


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UserError, match=r"pip install 'dreamcascade\[tensorrt-rtx\]'"):
        load_module("tensorrt-rtx")


def test_an_old_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(module, "__version__", "10.9.0.34", raising=False)
    with pytest.raises(UserError, match=r"tensorrt 10\.9\.0\.34 is too old; install 10\.13"):
        load_module("tensorrt")
    monkeypatch.setattr(module, "__version__", "11.3.0.12")
    assert load_module("tensorrt") is module
