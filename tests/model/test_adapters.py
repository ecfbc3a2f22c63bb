"""Adapters: whatever weight they are on, the answer changes, they learn, and they merge away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cascade.model.adapters import LowRank, adapt, adaptable, merged_state
from cascade.model.unet import UNet
from cascade.stage import Stage

Call = Callable[[UNet], Tensor]


UPPER = {"attention": ("none", "cross"), "low_res": True, "resample": "convolution"}


@pytest.fixture(params=[{}, UPPER], ids=["base", "super-resolution"])
def network(request: pytest.FixtureRequest, configs: Any, awake: Any) -> UNet:
    """A network none of whose weights are zero: behind one, nothing would be felt."""
    small = {"channels": (16, 32), "blocks": (1, 1), "attention": ("self", "joint")}
    built: UNet = awake(configs["base"].model_copy(update=small | request.param))
    return built


@pytest.fixture
def call(inputs: Any) -> Callable[[UNet], Tensor]:
    """Ask a network about inputs that are always the same."""
    return lambda network: network(**inputs(network.config))


def low_rank(weight: Tensor, rank: int = 2) -> LowRank:
    generator = torch.Generator().manual_seed(weight.numel())
    flat = weight.detach().flatten(1)
    down = torch.randn(rank, flat.shape[1], generator=generator) * flat.std()
    return LowRank(down, torch.randn(len(flat), rank, generator=generator))


def test_each_adapted_weight_is_felt_and_learns(network: UNet, call: Call) -> None:
    before = call(network).detach()
    layers = adaptable(network)
    assert sum(layer.endswith("block.skip") for layer in layers)
    for layer in layers:
        module = network.get_submodule(layer)
        adapter = low_rank(network.get_parameter(f"{layer}.weight"))
        adapt(network, layer, adapter)
        after = call(network)
        assert not torch.allclose(after, before), layer
        grads = torch.autograd.grad(after.square().sum(), list(adapter.parameters()))
        assert all(bool(grad.abs().sum() > 0) for grad in grads), layer
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        assert torch.equal(call(network), before), layer


def test_merged_weights_answer_as_the_adapted_network_does(network: UNet, call: Call) -> None:
    names = set(network.state_dict())
    for layer in adaptable(network):
        for _ in range(2):  # one on the other
            adapt(network, layer, low_rank(network.get_submodule(layer).weight * 0.1))
    adapted = call(network)
    state = merged_state(network)
    assert state.keys() == names
    plain = UNet(network.config).eval()
    plain.load_state_dict(state)
    torch.testing.assert_close(call(plain), adapted, rtol=1e-3, atol=1e-4)


def test_a_stage_is_saved_and_exported_merged(tiny_cascade: Path, tmp_path: Path) -> None:
    stage = Stage.load(tiny_cascade / "base16")
    plain = stage.fingerprint()
    assert stage.merged().fingerprint() == plain
    weight = stage.network.get_parameter("conv_in.weight")
    adapt(stage.network, "conv_in", low_rank(weight))
    assert stage.fingerprint() == stage.merged().fingerprint() != plain
    stage.save(tmp_path / "base16")
    saved = Stage.load(tmp_path / "base16")
    assert saved.fingerprint() == stage.fingerprint()
    assert not torch.equal(saved.network.get_parameter("conv_in.weight"), weight)


def test_some_rows_alone_are_adapted() -> None:
    layer = nn.Linear(3, 6, bias=False)
    before = layer.weight.detach().clone()
    adapt(layer, "", LowRank(torch.ones(1, 3), torch.ones(2, 1), scale=0.5, first=2))
    wanted = before + 0.5 * (torch.arange(6)[:, None] // 2 == 1)
    assert torch.equal(layer.weight, wanted)
