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
    none = torch.zeros_like(scale)
    expected = formula(x, weight, bias, *((scale, shift) if film else (none, none)), activation)
    given = (scale, shift) if film else (None, None)
    actual = group_norm_film_silu(x, weight, bias, GROUPS, EPS, *given, activation)
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


def test_refuses_what_it_does_not_know() -> None:
    x, weight, bias, scale, _ = draw()
    with pytest.raises(ValueError, match="together"):
        group_norm_film_silu(x, weight, bias, GROUPS, EPS, scale, None)
    with pytest.raises(ValueError, match="activation"):
        group_norm_film_silu(x, weight, bias, GROUPS, EPS, activation="relu")  # type: ignore[arg-type]
