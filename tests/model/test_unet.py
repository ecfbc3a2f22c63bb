"""What holds for every U-Net, whatever its configuration."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from cascade.config.train import Recomputation
from cascade.config.unet import UNetConfig
from cascade.model.embedding import sinusoids
from cascade.model.recompute import set_recomputation
from cascade.model.unet import UNet

Awake = Callable[[UNetConfig], UNet]
Inputs = Callable[..., dict[str, Tensor]]

# fp32 through some thirty layers with sums in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_a_new_network_predicts_zero(config: UNetConfig, inputs: Inputs) -> None:
    out = UNet(config)(**inputs(config))
    assert out.shape == (2, 6 if config.learned_variance else 3, 8, 8)
    assert not out.any()


def test_every_input_and_every_parameter_matters(
    config: UNetConfig, awake: Awake, inputs: Inputs
) -> None:
    network, drawn = awake(config), inputs(config)
    for value in drawn.values():
        if value.is_floating_point():
            value.requires_grad_()
    network(**drawn).square().sum().backward()
    for name, value in drawn.items():
        if value.is_floating_point():
            assert value.grad is not None, name
            assert value.grad.any(), name
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_a_sample_does_not_depend_on_its_neighbours(
    config: UNetConfig, awake: Awake, inputs: Inputs
) -> None:
    network, drawn = awake(config), inputs(config, batch=3)
    with torch.no_grad():
        together = network(**drawn)
        alone = network(**{name: value[1:2] for name, value in drawn.items()})
    torch.testing.assert_close(together[1:2], alone, **CLOSE)


def test_masked_tokens_have_no_influence(
    configs: dict[str, UNetConfig], awake: Awake, inputs: Inputs
) -> None:
    for kind in ("base", "efficient"):  # LayerNorm; a GroupNorm's statistics run over all tokens
        config = configs[kind]
        network, drawn = awake(config), inputs(config)
        with torch.no_grad():
            expected = network(**drawn)
            padding = ~drawn["text_mask"][:, :, None]
            drawn["text"] = torch.where(padding, 100.0, drawn["text"])
            torch.testing.assert_close(network(**drawn), expected, **CLOSE)
            shorter = {
                **drawn,
                "text": drawn["text"][:, :2],
                "text_mask": drawn["text_mask"][:, :2],
            }
            torch.testing.assert_close(network(**shorter), expected, **CLOSE)


@pytest.mark.parametrize("real", [True, False])
def test_one_token_real_or_not(
    config: UNetConfig, awake: Awake, inputs: Inputs, real: bool
) -> None:
    network, drawn = awake(config), inputs(config, tokens=1)
    drawn["text_mask"] = torch.full((2, 1), real)
    out = network(**drawn)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_checkpointing_leaves_the_gradients_alone(
    config: UNetConfig, awake: Awake, inputs: Inputs
) -> None:
    network, drawn = awake(config).train(), inputs(config)
    gradients = []
    for recomputation in get_args(Recomputation):
        set_recomputation(network, recomputation)
        network.zero_grad()
        with _saved_bytes() as saved:
            loss = network(**drawn).square().mean()
        loss.backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        gradients[-1].append(torch.tensor(saved.total))
    *plain, plain_bytes = gradients[0]
    for *recomputed, recomputed_bytes in gradients[1:]:
        # The same operations on the same numbers: equal to the bit.
        assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
        assert recomputed_bytes < plain_bytes / 2


class _saved_bytes:
    """Count what autograd keeps for the backward pass, parameters aside."""

    def __init__(self) -> None:
        self.total = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:
            self.total += tensor.nbytes
        return tensor

    def __enter__(self) -> "_saved_bytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)


def test_bf16_autocast(config: UNetConfig, awake: Awake, inputs: Inputs) -> None:
    network, drawn = awake(config), inputs(config)
    expected = network(**drawn)
    with torch.autocast("cpu", torch.bfloat16):
        actual = network(**drawn)
    actual.float().sum().backward()
    # A bf16 product is off by 2^-9; thirty layers that add their errors stay below thirty of them.
    assert (actual - expected).abs().max() < 30 * 2**-9 * expected.abs().max()
    assert network.conv_in.weight.grad.dtype == torch.float32


def test_a_network_in_bf16(config: UNetConfig, awake: Awake, inputs: Inputs) -> None:
    network = awake(config).bfloat16()
    drawn = {
        name: value.bfloat16() if value.is_floating_point() and value.ndim > 1 else value
        for name, value in inputs(config).items()
    }
    out = network(**drawn)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_channels_last(config: UNetConfig, awake: Awake, inputs: Inputs) -> None:
    network, drawn = awake(config), inputs(config)
    expected = network(**drawn)
    network = network.to(memory_format=torch.channels_last)
    drawn["x"] = drawn["x"].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(**drawn), expected, **CLOSE)


@pytest.mark.slow
def test_exports_with_a_dynamic_batch(config: UNetConfig, awake: Awake, inputs: Inputs) -> None:
    network = awake(config)
    batch = torch.export.Dim("batch", min=1, max=16)
    drawn = inputs(config)
    program = torch.export.export(
        network, (), kwargs=drawn, dynamic_shapes={name: {0: batch} for name in drawn}
    )
    others = inputs(config, batch=3)
    torch.testing.assert_close(program.module()(**others), network(**others), **CLOSE)


def test_height_and_width_are_told_apart(config: UNetConfig, awake: Awake, inputs: Inputs) -> None:
    """A picture on its side, by a network whose kernels lie on theirs, is drawn on its side."""
    network, turned = awake(config), awake(config)
    for module in turned.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight = torch.nn.Parameter(module.weight.mT.contiguous())
    drawn = inputs(config, height=8, width=20)
    on_its_side = {name: one.mT if one.ndim == 4 else one for name, one in drawn.items()}
    with torch.no_grad():
        upright = network(**drawn)
        torch.testing.assert_close(turned(**on_its_side).mT, upright, **CLOSE)
    assert upright.shape[2:] == (8, 20)


def test_a_shifted_picture_is_predicted_shifted(
    configs: dict[str, UNetConfig], awake: Awake, inputs: Inputs
) -> None:
    """By multiples of the network's stride and far from the edges, as of any convolution."""
    config = configs["efficient"]
    network = awake(config)
    drawn = inputs(config, batch=1, height=8, width=96)
    shifted = dict(drawn)
    for name in ("x", "low_res"):
        shifted[name] = drawn[name].roll(config.factor, dims=-1)
    with torch.no_grad():
        a, b = network(**drawn), network(**shifted)
    # Rolled content is the same to every norm, up to the two edges; far from them little differs.
    middle = slice(40, 56)
    difference = (a.roll(config.factor, dims=-1) - b)[..., middle].abs().max()
    assert difference < 0.05 * a.abs().max()


def test_sizes_that_do_not_divide_are_refused(config: UNetConfig, inputs: Inputs) -> None:
    with pytest.raises(ValueError, match="do not divide"):
        UNet(config)(**inputs(config, width=9))


def test_low_resolution_input_belongs_to_super_resolution(
    config: UNetConfig, inputs: Inputs
) -> None:
    drawn = inputs(config)
    if config.low_res:
        del drawn["aug"]
    else:
        drawn["low_res"] = drawn["x"]
    with pytest.raises(ValueError, match="low_res"):
        UNet(config)(**drawn)


def test_sinusoids_are_cosines_then_sines() -> None:
    waves = sinusoids(torch.tensor([0.0, 2.0]), 4)
    expected = [[1.0, 1.0, 0.0, 0.0], [-0.416147, 0.999800, 0.909297, 0.019999]]
    torch.testing.assert_close(waves, torch.tensor(expected), rtol=0, atol=1e-6)
