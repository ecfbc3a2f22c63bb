"""The small cascade's own encoder, as it ships."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cascade.config.stage import TextConfig
from cascade.text.encoder import TextEncoder
from cascade.text.identifier import check_identifier, find_identifiers, rare_range

LENGTH = 32
RARE = 200  # pieces that were appended to the vocabulary for identifiers


@pytest.fixture(scope="module")
def mini(repository: Path) -> TextEncoder:
    return TextEncoder.load(repository / "cascade" / "zoo" / "mini" / "text")


def _pooled(mini: TextEncoder, prompts: list[str]) -> Tensor:
    text = mini.embed(prompts, TextConfig(max_length=LENGTH, cleaning="lower"))
    return normalize(text.embedding.sum(dim=1) / text.mask.sum(dim=1, keepdim=True), dim=1)


def test_elements_have_unit_variance(mini: TextEncoder) -> None:
    text = mini.embed(
        ["a photo of a dog on the beach", "a red car", "a teapot"],
        TextConfig(max_length=LENGTH, cleaning="lower"),
    )
    power = text.embedding[text.mask].square().mean(dim=1)
    # The last RMSNorm has unit gain; bfloat16 weights of that norm are exactly 1.
    torch.testing.assert_close(power, torch.ones_like(power), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("prompt", "near", "far"),
    [
        ("a dog", "an animal", "a teapot"),
        ("a car", "a vehicle", "an apple"),
        ("a sneaker", "a shoe", "a bear"),
        ("a photo of a dog", "a dog", "a photo of a cat"),
        ("a teddy bear", "a stuffed animal", "a house"),
        ("a dog on the beach", "a dog at the beach", "a dog in space"),
    ],
)
def test_meaning(mini: TextEncoder, prompt: str, near: str, far: str) -> None:
    anchor, close, distant = _pooled(mini, [prompt, near, far])
    assert anchor @ close > anchor @ distant


def test_identifiers_are_rare_single_and_told_apart(mini: TextEncoder) -> None:
    lowest, highest = rare_range(mini.tokenizer)
    assert highest - lowest + 1 >= RARE
    found = find_identifiers(mini.tokenizer, "lower", RARE, seed=0)
    for identifier in found:
        check_identifier(mini.tokenizer, "lower", identifier, "dog")
    prompts = [f"a {identifier} dog" for identifier in found]
    text = mini.embed(prompts, TextConfig(max_length=LENGTH, cleaning="lower"))
    assert text.mask.all()  # "a", the identifier, "dog", </s>: four tokens in every prompt
    assert text.mask.shape[1] == 4
    tokens = normalize(text.embedding[:, 1], dim=1)
    similarity = tokens @ tokens.T - 2 * torch.eye(len(found))
    # No two collapse onto one another; the shipped encoder's nearest pair is at 0.9 or less.
    assert similarity.max() < 0.95
