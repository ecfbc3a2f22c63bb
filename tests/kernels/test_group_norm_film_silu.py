"""GroupNorm with FiLM and activation against its formula in fp64."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from cascade_kernels.group_norm_film_silu import group_norm_film_silu

BATCH, CHANNELS, GROUPS, EPS = 2, 12, 3, 1e-5
Activation = Literal["silu", "gelu", "none"]


def formula(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, activation: str
) -> Tensor:
    """The definition, step by step, in fp64."""
    x, weight, bias, scale, shift = (t.double() for t in (x, weight, bias, scale, shift))
    grouped = x.reshape(BATCH, GROUPS, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    normal = ((grouped - mean) / (variance + EPS).sqrt()).reshape(x.shape)
    y = normal * weight[:, None, None] + bias[:, None, None]
    y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    if activation == "silu":
        return y / (1 + (-y).exp())
    return y * 0.5 * (1 + torch.erf(y / math.sqrt(2))) if activation == "gelu" else y


def draw() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (BATCH, CHANNELS, 4, 5),
        (CHANNELS,),
        (CHANNELS,),
        (BATCH, CHANNELS),
        (BATCH, CHANNELS),
    )
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize("film", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu", "none"])
def test_is_its_formula(activation: Activation, film: bool) -> None:
    x, weight, bias, scale, shift = draw()
    if film:
        expected = formula(x, weight, bias, scale, shift, activation)
        actual = group_norm_film_silu(x, weight, bias, GROUPS, EPS, scale, shift, activation)
    else:
        none = torch.zeros_like(scale)
        expected = formula(x, weight, bias, none, none, activation)
        actual = group_norm_film_silu(x, weight, bias, GROUPS, EPS, activation=activation)
    # fp32 on values up to ten: a few units in the last place.
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=5e-6)


def test_bf16_costs_one_rounding_only() -> None:
    """Far from zero, where statistics in bf16 would lose every digit."""
    x, weight, bias, scale, shift = draw()
    x = (x + 50).bfloat16()
    expected = formula(x, weight, bias, scale, shift, "none")
    actual = group_norm_film_silu(x, weight, bias, GROUPS, EPS, scale, shift, "none")
    assert actual.dtype == torch.bfloat16
    # Half a unit in the last of bf16's eight digits, beside fp32's own error.
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("activation", ["silu", "gelu", "none"])
def test_the_gradients_are_those_of_the_formula(activation: Activation) -> None:
    x, *vectors = (tensor.double().requires_grad_() for tensor in draw())

    def run(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return group_norm_film_silu(x, weight, bias, GROUPS, EPS, scale, shift, activation)

    assert torch.autograd.gradcheck(run, (x, *vectors))


@pytest.mark.parametrize("film", [True, False])
def test_a_skip_is_stacked_behind_the_image(film: bool) -> None:
    x, weight, bias, *both = draw()
    scale, shift = both if film else (None, None)
    image, skip = x[:, :5], x[:, 5:] / 0.5  # of three groups the second straddles the border
    expected = group_norm_film_silu(x, weight, bias, GROUPS, EPS, scale, shift)
    actual = group_norm_film_silu(
        image, weight, bias, GROUPS, EPS, scale, shift, skip=skip, skip_scale=0.5
    )
    # Powers of two scale without rounding.
    assert torch.equal(actual, expected)


def test_the_gradients_reach_both_images() -> None:
    x, *vectors = (tensor.double().requires_grad_() for tensor in draw())

    def run(image: Tensor, skip: Tensor, *vectors: Tensor) -> Tensor:
        weight, bias, scale, shift = vectors
        return group_norm_film_silu(
            image, weight, bias, GROUPS, EPS, scale, shift, skip=skip, skip_scale=0.7
        )

    assert torch.autograd.gradcheck(run, (x[:, :5], x[:, 5:], *vectors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_channels_last(dtype: torch.dtype) -> None:
    x, weight, bias, scale, shift = draw()
    last = x.to(dtype, memory_format=torch.channels_last)
    for film in ((scale, shift), (None, None)):
        y = group_norm_film_silu(last, weight, bias, GROUPS, EPS, *film)
        assert y.is_contiguous(memory_format=torch.channels_last)
        stacked = group_norm_film_silu(
            last[:, :5], weight, bias, GROUPS, EPS, *film, skip=last[:, 5:]
        )
        assert torch.equal(stacked, y)
    assert group_norm_film_silu(x, weight, bias, GROUPS, EPS).is_contiguous()


def test_a_view_of_a_batch_of_one_is_as_good_as_what_it_views() -> None:
    image = torch.randn(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    view = image.view(image.shape)
    assert view.stride() != image.stride()  # else there is nothing to test
    weight, bias = torch.ones(8), torch.zeros(8)
    ours, theirs = (group_norm_film_silu(x, weight, bias, 2, 1e-5) for x in (view, image))
    assert torch.equal(ours, theirs)


def test_refuses_what_it_does_not_know() -> None:
    x, weight, bias, scale, _ = draw()
    with pytest.raises(ValueError, match="together"):
        group_norm_film_silu(x, weight, bias, GROUPS, EPS, scale, None)
    with pytest.raises(ValueError, match="activation"):
        group_norm_film_silu(x, weight, bias, GROUPS, EPS, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="5 groups do not divide 12 channels"):
        group_norm_film_silu(x, weight, bias, 5, EPS)
    with pytest.raises(ValueError, match="more than channels"):
        group_norm_film_silu(x, weight, bias, GROUPS, EPS, skip=x[..., :2])
    with pytest.raises(ValueError, match="alike"):
        group_norm_film_silu(x, weight, bias, GROUPS, EPS, skip=x.half())
    with pytest.raises(ValueError, match="float64"):
        group_norm_film_silu(x.double(), weight, bias, GROUPS, EPS, backend="triton")
