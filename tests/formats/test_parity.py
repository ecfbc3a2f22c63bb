"""Our network against diffusers' U-Net, the public reading of DeepFloyd IF, through the table."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.config.unet import UNetConfig
from cascade.formats.keys import entries
from cascade.formats.settings import Settings
from cascade.formats.unet import unet_from_diffusers
from cascade.model.unet import UNet

SEEDS = range(13)
# fp32 through some thirty layers, in another order of the same sums.
RELATIVE = 1e-5
SIZE = (16, 8)


def ours(settings: dict[str, Any], state: Mapping[str, Tensor]) -> UNet:
    """Our network with diffusers' weights."""
    config = UNetConfig.model_validate(unet_from_diffusers(Settings(settings, "config.json")))
    network = UNet(config).eval()
    network.load_state_dict(
        {
            entry.ours: entry.join([state[name] for name in entry.theirs])
            for entry in entries(config)
        }
    )
    return network


def inputs(config: UNetConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = {
        "x": torch.randn(2, 3, *SIZE, generator=generator),
        "t": torch.tensor([17.0, 903.0]),
        "text": torch.randn(2, 7, config.text_width, generator=generator),
        "text_mask": torch.ones(2, 7, dtype=torch.bool),
    }
    if config.low_res:
        drawn["low_res"] = torch.randn(2, 3, *SIZE, generator=generator)
        drawn["aug"] = torch.tensor([250.0, 4.0])
    return drawn


def reference(network: Any, given: Mapping[str, Tensor]) -> Tensor:
    x = given["x"]
    if "low_res" in given:
        x = torch.cat([x, given["low_res"]], dim=1)
    out: Tensor = network(
        x, given["t"], given["text"], class_labels=given.get("aug"), return_dict=False
    )[0]
    return out


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def run(network: Any, given: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The prediction, and all gradients of one MSE loss by diffusers' names."""
    mine = isinstance(network, UNet)
    out = network(**given) if mine else reference(network, given)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    network.zero_grad()
    torch.nn.functional.mse_loss(out, target).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    if mine:
        parts = [entry.split(gradients[entry.ours]) for entry in entries(network.config)]
        gradients = {name: value for part in parts for name, value in part.items()}
    # It shifts all inputs of a softmax alike: its gradient is zero but for rounding.
    return out.detach(), {
        n: g for n, g in gradients.items() if n != "add_embedding.pool.k_proj.bias"
    }


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


@pytest.mark.parametrize("seed", SEEDS)
def test_forward_and_every_gradient(
    seed: int, network: Callable[[int], dict[str, Any]], theirs: Callable[..., Any]
) -> None:
    settings = network(seed)
    peer = theirs(settings, seed)
    mine = ours(settings, peer.state_dict())
    given = inputs(mine.config)
    expected, wanted = run(peer, given)
    actual, got = run(mine, given)
    assert expected.std() > 0.1  # awake
    assert relative(actual, expected) < RELATIVE
    assert got.keys() == wanted.keys()
    assert relative(flat(got), flat(wanted)) < RELATIVE
    double = {n: v.double() if v.is_floating_point() else v for n, v in given.items()}
    _, exact = run(peer.double(), double)
    _, got_exact = run(mine.double(), double)
    for name, gradient in wanted.items():
        assert relative(got_exact[name], exact[name]) < RELATIVE, name
        # Some sums cancel so far that diffusers' own rounding exceeds the bound: ours may be twice
        # as far from the exact value, so both are at most three times theirs apart.
        rounding = relative(gradient.double(), exact[name])
        assert relative(got[name], gradient) < max(RELATIVE, 3 * rounding), name


@pytest.mark.parametrize("seed", [0, 1])
def test_the_table_loses_nothing(
    seed: int, network: Callable[[int], dict[str, Any]], theirs: Callable[..., Any]
) -> None:
    settings = network(seed)
    state = theirs(settings, seed).state_dict()
    mine = ours(settings, state)
    again = {
        name: part
        for entry in entries(mine.config)
        for name, part in entry.split(mine.state_dict()[entry.ours]).items()
    }
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_zero_null_text_is_a_text_like_any(
    network: Callable[[int], dict[str, Any]], theirs: Callable[..., Any]
) -> None:
    settings = network(0)
    peer = theirs(settings)
    mine = ours(settings, peer.state_dict())
    given = inputs(mine.config) | {"text": torch.zeros(2, 7, mine.config.text_width)}
    with torch.no_grad():
        assert relative(mine(**given), reference(peer, given)) < RELATIVE
