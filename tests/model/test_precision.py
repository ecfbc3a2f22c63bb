"""Which devices have bf16, and that one without is told of once, in training and in sampling."""

from pathlib import Path

import pytest
import torch

from cascade.model import precision
from cascade.model.precision import autocast, computes_bf16, warn_if_emulated
from cascade.pipeline import Cascade

CPU = torch.device("cpu")
SAID = "emulates it, which takes longer than fp32"


@pytest.fixture(params=[False, True])
def emulates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this CPU is one that emulates bf16."""
    monkeypatch.setattr(precision, "computes_bf16", lambda device: not request.param)
    precision._tell.cache_clear()
    return bool(request.param)


def test_it_is_said_once(emulates: bool, caplog: pytest.LogCaptureFixture) -> None:
    warn_if_emulated("fp32", CPU)
    assert not caplog.text
    warn_if_emulated("bf16", CPU)
    warn_if_emulated("bf16", CPU)
    assert caplog.text.count(SAID) == emulates


def test_auto_is_bf16_where_the_device_has_it(
    emulates: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_if_emulated("auto", CPU)
    assert not caplog.text
    with autocast("auto", CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.float32 if emulates else torch.bfloat16)


def test_sampling_says_it(
    emulates: bool, tiny_cascade: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cascade = Cascade.load(tiny_cascade)
    samplers = {
        stage.config.name: stage.config.sampler.model_copy(update={"steps": 1, "precision": "bf16"})
        for stage in cascade.stages
    }
    cascade.sample("a dog", samplers=samplers)
    assert caplog.text.count(SAID) == emulates


def test_a_cpu_without_onednn_s_bf16_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "convolves_bf16", lambda: False)
    assert not computes_bf16(CPU)


def test_a_cpu_with_avx512_alone_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "convolves_bf16", lambda: True)
    lacks = {"architecture": "x86_64", "avx512_bf16": False, "avx_ne_convert": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: lacks)
    assert not computes_bf16(CPU)
    lacks["avx512_bf16"] = True
    assert computes_bf16(CPU)


@pytest.mark.parametrize(("name", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_have_the_precision_s_type(name: precision.Precision, kind: torch.dtype) -> None:
    with autocast(name, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind
