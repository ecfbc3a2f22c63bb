"""The comparison with diffusers: equal answers first, then numbers that belong to them."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
CPU = torch.device("cpu")


@pytest.fixture
def measure(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as `python tools/bench_peers.py` sees it."""
    monkeypatch.syspath_prepend(str(repository / "tools"))
    yield importlib.import_module("peers.measure")
    for name in ("bench_peers", "peers.measure", "peers.networks", "peers"):
        sys.modules.pop(name, None)


@pytest.fixture
def networks(measure: ModuleType) -> ModuleType:
    """Its neighbour."""
    return sys.modules["peers.networks"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "precision"),
    [("if-i-m", "training", "fp32"), ("if-ii-m", "sampling", "bf16")],
)
def test_a_case_is_checked_timed_and_weighed(
    measure: ModuleType, networks: ModuleType, name: str, mode: str, precision: str
) -> None:
    shape = networks.narrowed(name, 32, 16)
    ours, theirs = networks.pair(shape, CPU)
    providers = {"ours": networks.Provider(ours), "diffusers": networks.Provider(theirs)}
    case = measure.Case(shape, 2, mode, precision)
    record = measure.compare(case, providers, networks.Inputs.draw(shape, 2, CPU), rounds=2)
    assert record["parameters"] == sum(p.numel() for p in ours.parameters())
    for row in record["providers"].values():
        assert len(row["milliseconds"]) == 2
        assert row["peak_bytes"] > 0
        assert 0 < row["error"] < 0.1
    assert record["providers"]["diffusers"]["ratio"]["median"] == 1


@pytest.mark.slow
def test_nothing_is_timed_whose_answers_differ(measure: ModuleType, networks: ModuleType) -> None:
    shape = networks.narrowed("if-i-m", 32, 16)
    ours, theirs = networks.pair(shape, CPU)
    with torch.no_grad():
        ours.get_parameter("conv_out.weight").mul_(1.01)
    providers = {"ours": networks.Provider(ours), "diffusers": networks.Provider(theirs)}
    case = measure.Case(shape, 1, "sampling", "fp32")
    with pytest.raises(measure.MismatchError, match=r"relative error of ours is 0\.0"):
        measure.compare(case, providers, networks.Inputs.draw(shape, 1, CPU), rounds=2)


def test_peak_memory_is_what_is_alive_at_once(measure: ModuleType) -> None:
    layers = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
    x = torch.randn(1024, 256)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return layers(x)  # type: ignore[no-any-return]

    assert measure.peak_bytes(run, CPU) == 2 * x.nbytes
