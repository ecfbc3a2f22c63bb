"""Precision: the islands hold, and half precision stays as near as its rounding allows."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from cascade.config.unet import UNetConfig
from cascade.diffusion.denoiser import Network
from cascade.errors import UserError
from cascade.model.layers import FilmGroupNorm
from cascade.model.unet import UNet
from cascade_export.graph.numerics import Precision
from cascade_export.graph.precision import DEFAULT_ISLANDS, cast, in_island

CONFIG = UNetConfig(
    channels=(16, 32),
    blocks=(1, 1),
    attention=("none", "joint"),
    head_channels=16,
    text_width=24,
    context_width=32,
    time_width=32,
    pool_heads=4,
    norm_groups=8,
    low_res=True,
    text_norm="group",
)
EPSILON: dict[Precision, float] = {"fp16": 2**-11, "bf16": 2**-8}


def relative_error(network: Network, reference: Network, inputs: Mapping[str, Tensor]) -> float:
    """|network - reference| / |reference| in the 2-norm over one call's output."""
    with torch.no_grad():
        wanted = reference(**inputs).double()
        return float((network(**inputs).double() - wanted).norm() / wanted.norm())


@pytest.fixture
def network() -> UNet:
    torch.manual_seed(0)
    built = UNet(CONFIG).eval()
    for parameter in built.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return built


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(2, 3, 8, 8, generator=generator),
        "t": torch.tensor([20.0, 970.0]),
        "text": torch.randn(2, 5, 24, generator=generator),
        "text_mask": torch.arange(5) < torch.tensor([[5], [0]]),
        "low_res": torch.randn(2, 3, 8, 8, generator=generator),
        "aug": torch.tensor([0.0, 300.0]),
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_error_is_a_few_roundings(
    network: UNet, inputs: dict[str, Tensor], precision: Precision
) -> None:
    # Some thirty layers each round their result once: errors add as in a random walk, so about
    # sqrt(30) roundings, and the bound leaves a factor of four for unlucky ones.
    error = relative_error(cast(network, precision), network, inputs)
    assert EPSILON[precision] / 10 < error < 20 * EPSILON[precision]


def test_fp32_is_the_network_itself(network: UNet, inputs: dict[str, Tensor]) -> None:
    # Its copy asks for no gradients; some CPUs have another kernel for weights that do.
    network.requires_grad_(False)
    copied = cast(network, "fp32")
    assert relative_error(copied, network, inputs) == 0
    assert all(
        value.data_ptr() == network.state_dict()[name].data_ptr()
        for name, value in copied.state_dict().items()
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_names_stay_and_islands_alone_are_wide(network: UNet, precision: Precision) -> None:
    state = cast(network, precision).state_dict()
    assert list(state) == list(network.state_dict())
    wide = {name for name, value in state.items() if value.dtype == torch.float32}
    assert wide == {n for n in state if in_island(n.rpartition(".")[0], DEFAULT_ISLANDS)}
    assert {"conv_out.weight", "time_embedding.linear1.weight", "norm_out.bias"} <= wide
    assert "conv_in.weight" not in wide
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


@pytest.mark.parametrize(
    "island", ["conv_in", "decoder", "decoder.1", "*.attention", "*.conv2", "decoder.0.block.skip"]
)
def test_output_is_float32_and_nearer_with_one_more_island(
    network: UNet, inputs: dict[str, Tensor], island: str
) -> None:
    wider = cast(network, "bf16", (*DEFAULT_ISLANDS, island))
    assert wider(**inputs).dtype == torch.float32
    # One layer's rounding is a small part of the whole: islands may not make it worse than chance.
    plain = relative_error(cast(network, "bf16"), network, inputs)
    assert relative_error(wider, network, inputs) < 1.5 * plain


def test_with_every_layer_an_island_only_the_image_between_units_is_rounded(
    network: UNet, inputs: dict[str, Tensor]
) -> None:
    names = [name for name, _ in network.named_children()]
    widest = cast(network, "bf16", names)
    assert all(value.dtype == torch.float32 for value in widest.state_dict().values())
    error = relative_error(widest, network, inputs)
    assert 0 < error < 0.8 * relative_error(cast(network, "bf16", ()), network, inputs)


def test_an_island_carries_what_fp16_cannot(network: UNet, inputs: dict[str, Tensor]) -> None:
    block = network.get_submodule("decoder.1.block")
    with torch.no_grad():
        # 1e5 after the first convolution; the norm behind it takes the size away again.
        block.get_parameter("conv1.weight").mul_(1e6)
    assert not cast(network, "fp16")(**inputs).isfinite().all()
    saved = cast(network, "fp16", (*DEFAULT_ISLANDS, "decoder.1.block"))
    assert relative_error(saved, network, inputs) < 20 * EPSILON["fp16"]


def test_norms_in_fp16_have_statistics_of_values_whose_squares_overflow() -> None:
    norm = FilmGroupNorm(2, 4, "none")
    x = 3e4 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    found = norm(x.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), norm(x), rtol=2**-10, atol=2**-10)


def test_an_unknown_island_is_refused(network: UNet) -> None:
    with pytest.raises(UserError, match=r"no module 'decoder\.99'"):
        cast(network, "fp16", ("decoder.99",))


def test_only_a_unet_is_cast() -> None:
    with pytest.raises(TypeError, match="no UNet"):
        cast(nn.Linear(2, 2), "fp16")
