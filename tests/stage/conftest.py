"""The small cascade, loaded once for this package."""

from pathlib import Path

import pytest

from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade.text.prompts import PromptTable

PROMPTS = ("a photo of a dog", "a cat on the beach", "a red backpack")


@pytest.fixture(scope="session")
def cascade(tiny_cascade: Path) -> Cascade:
    """The small cascade; its weights stay as they are."""
    return Cascade.load(tiny_cascade)


@pytest.fixture(scope="session")
def base(cascade: Cascade) -> Stage:
    """Its base stage, 16 pixels."""
    return cascade.stages[0]


@pytest.fixture(scope="session")
def super_resolution(cascade: Cascade) -> Stage:
    """Its super-resolution stage, 16 to 32 pixels."""
    return cascade.stages[1]


@pytest.fixture(scope="session")
def table(cascade: Cascade) -> PromptTable:
    """A few prompts, embedded."""
    return cascade.prompts(PROMPTS)
