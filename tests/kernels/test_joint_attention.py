"""Joint attention against its formula in fp64."""

import math

import pytest
import torch
from torch import Tensor

from cascade_kernels.joint_attention import joint_attention

BATCH, HEADS, IMAGE, TEXT, WIDTH = 2, 3, 7, 5, 8


def draw(seed: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, HEADS, tokens, WIDTH, generator=generator)


def formula(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention over the visible keys, B K, written out."""
    q, k, v = q.double(), k.double(), v.double()
    weight = (q @ k.mT / math.sqrt(WIDTH)).exp() * visible[:, None, None, :]
    return weight / weight.sum(dim=-1, keepdim=True) @ v


MASK = torch.tensor([[True] * 5, [True, True, False, True, False]])
SEEN = torch.ones(BATCH, IMAGE, dtype=torch.bool)


@pytest.mark.parametrize("mask", [MASK, None])
def test_text_and_image_share_one_softmax(mask: Tensor | None) -> None:
    q, k, v = (draw(seed, IMAGE) for seed in range(3))
    text_k, text_v = draw(3, TEXT), draw(4, TEXT)
    visible = torch.cat([torch.ones_like(MASK) if mask is None else mask, SEEN], dim=1)
    expected = formula(q, torch.cat([text_k, k], 2), torch.cat([text_v, v], 2), visible)
    actual = joint_attention(q, k, v, text_k, text_v, mask)
    # Twelve keys, fp32: a few units in the last place of values of order one.
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6)


def test_self_attention_ignores_the_texts_mask() -> None:
    q, k, v = (draw(seed, IMAGE) for seed in range(3))
    actual = joint_attention(q, k, v, None, None, MASK)
    torch.testing.assert_close(actual.double(), formula(q, k, v, SEEN), rtol=0, atol=2e-6)


def test_cross_attention_sees_the_text_alone() -> None:
    q, text_k, text_v = draw(0, IMAGE), draw(3, TEXT), draw(4, TEXT)
    actual = joint_attention(q, None, None, text_k, text_v, MASK)
    expected = formula(q, text_k, text_v, MASK)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6)


def test_nothing_to_attend_to_gives_zero_and_finite_gradients() -> None:
    q, text_k, text_v = (draw(seed, 4).requires_grad_() for seed in range(3))
    mask = torch.tensor([[False] * 4, [True] * 4])
    out = joint_attention(q, None, None, text_k, text_v, mask)
    out.square().sum().backward()
    assert not out[0].any()
    assert out[1].all()
    for tensor in (q, text_k, text_v):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[0].any()


def test_the_gradients_are_those_of_the_formula() -> None:
    tensors = [draw(seed, 3).double().requires_grad_() for seed in range(5)]
    mask = torch.tensor([[True, False, True], [True, True, True]])
    assert torch.autograd.gradcheck(lambda *inputs: joint_attention(*inputs, mask), tensors)


def test_refuses_halves() -> None:
    q = draw(0, IMAGE)
    with pytest.raises(ValueError, match="together"):
        joint_attention(q, q, None, None, None, None)
    with pytest.raises(ValueError, match="needs"):
        joint_attention(q, None, None, None, None, None)
