"""Joint attention against its formula in fp64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

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


LENGTH = torch.tensor([5, 2])
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])
SEEN = torch.ones(BATCH, IMAGE, dtype=torch.bool)


@pytest.mark.parametrize("length", [LENGTH, LENGTH.int(), None])
def test_text_and_image_share_one_softmax(length: Tensor | None) -> None:
    q, k, v = (draw(seed, IMAGE) for seed in range(3))
    text_k, text_v = draw(3, TEXT), draw(4, TEXT)
    visible = torch.cat([torch.ones_like(MASK) if length is None else MASK, SEEN], dim=1)
    expected = formula(q, torch.cat([text_k, k], 2), torch.cat([text_v, v], 2), visible)
    actual = joint_attention(q, k, v, text_k, text_v, length)
    # Twelve keys, fp32: a few units in the last place of values of order one.
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6)


def test_self_attention_ignores_the_texts_length() -> None:
    q, k, v = (draw(seed, IMAGE) for seed in range(3))
    actual = joint_attention(q, k, v, None, None, LENGTH)
    torch.testing.assert_close(actual.double(), formula(q, k, v, SEEN), rtol=0, atol=2e-6)


def test_cross_attention_sees_the_text_alone() -> None:
    q, text_k, text_v = draw(0, IMAGE), draw(3, TEXT), draw(4, TEXT)
    actual = joint_attention(q, None, None, text_k, text_v, LENGTH)
    expected = formula(q, text_k, text_v, MASK)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6)


def test_nothing_to_attend_to_gives_zero_and_finite_gradients() -> None:
    q, text_k, text_v = (draw(seed, 4).requires_grad_() for seed in range(3))
    out = joint_attention(q, None, None, text_k, text_v, torch.tensor([0, 4]))
    out.square().sum().backward()
    assert not out[0].any()
    assert out[1].all()
    for tensor in (q, text_k, text_v):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[0].any()


def test_the_gradients_are_those_of_the_formula() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, text_k: Tensor, text_v: Tensor) -> Tensor:
        return joint_attention(q, k, v, text_k, text_v, torch.tensor([2, 3]))

    tensors = [draw(seed, 3).double().requires_grad_() for seed in range(5)]
    assert torch.autograd.gradcheck(attend, tensors)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
        assert torch.autograd.gradgradcheck(attend, tensors)


def test_the_output_is_laid_out_for_the_next_projection() -> None:
    q, k, v = (draw(seed, IMAGE) for seed in range(3))
    for text in (None, draw(3, TEXT)):
        out = joint_attention(q, k, v, text, text, LENGTH)
        assert out.transpose(1, 2).is_contiguous()


def test_refuses_halves_and_shapes_that_do_not_fit() -> None:
    q, text = draw(0, IMAGE), draw(1, TEXT)
    with pytest.raises(ValueError, match="together"):
        joint_attention(q, q, None, None, None, None)
    with pytest.raises(ValueError, match="needs"):
        joint_attention(q, None, None, None, None, None)
    with pytest.raises(ValueError, match=r"k has shape .* expected"):
        joint_attention(q, text, text, None, None, None)
    with pytest.raises(ValueError, match="text_v has shape"):
        joint_attention(q, q, q, text, text[:, :, 1:], None)
    with pytest.raises(ValueError, match="one per image"):
        joint_attention(q, q, q, text, text, LENGTH[:1])
