"""Adapters: whatever weight they are on, the answer changes, they learn, and they merge away."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cascade.config.unet import UNetConfig
from cascade.model.adapters import LowRank, adapt, adaptable, merged_state
from cascade.model.example import example_inputs
from cascade.model.unet import UNet
from cascade.stage import Stage

BASE = UNetConfig(
    channels=(16, 32),
    blocks=(1, 1),
    attention=("self", "joint"),
    head_channels=16,
    text_width=24,
    context_width=32,
    time_width=32,
    pool_heads=4,
    norm_groups=8,
)
SUPER_RESOLUTION = BASE.model_copy(
    update={"attention": ("none", "cross"), "low_res": True, "resample": "convolution"}
)
CONFIGS = {"base": BASE, "super-resolution": SUPER_RESOLUTION}


@pytest.fixture(params=CONFIGS)
def network(request: pytest.FixtureRequest) -> UNet:
    """A network none of whose weights are zero: behind one, nothing would be felt."""
    torch.manual_seed(0)
    built = UNet(CONFIGS[request.param]).eval()
    for parameter in built.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return built


def low_rank(weight: Tensor, rank: int = 2) -> LowRank:
    generator = torch.Generator().manual_seed(weight.numel())
    flat = weight.detach().flatten(1)
    down = torch.randn(rank, flat.shape[1], generator=generator) * flat.std()
    return LowRank(down, torch.randn(len(flat), rank, generator=generator))


def call(network: nn.Module, config: UNetConfig) -> Tensor:
    torch.manual_seed(1)
    inputs = example_inputs(config, 2, (8, 8), 5)
    noise = {
        n: torch.randn_like(v) if n in ("x", "text", "low_res") else v for n, v in inputs.items()
    }
    out: Tensor = network(**noise)
    return out


def test_each_adapted_weight_is_felt_and_learns(network: UNet) -> None:
    before = call(network, network.config).detach()
    layers = adaptable(network)
    assert sum(layer.endswith("block.skip") for layer in layers)
    for layer in layers:
        module = network.get_submodule(layer)
        adapter = low_rank(network.get_parameter(f"{layer}.weight"))
        adapt(network, layer, adapter)
        after = call(network, network.config)
        assert not torch.allclose(after, before), layer
        grads = torch.autograd.grad(after.square().sum(), list(adapter.parameters()))
        assert all(bool(grad.abs().sum() > 0) for grad in grads), layer
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        assert torch.equal(call(network, network.config), before), layer


def test_merged_weights_answer_as_the_adapted_network_does(network: UNet) -> None:
    names = set(network.state_dict())
    for layer in adaptable(network):
        for _ in range(2):  # one on the other
            adapt(network, layer, low_rank(network.get_submodule(layer).weight * 0.1))
    adapted = call(network, network.config)
    state = merged_state(network)
    assert state.keys() == names
    plain = UNet(network.config).eval()
    plain.load_state_dict(state)
    torch.testing.assert_close(call(plain, plain.config), adapted, rtol=1e-3, atol=1e-4)


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
