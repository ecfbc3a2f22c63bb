"""How far a tuned cascade came, and pictures that stop at a stage."""

from pathlib import Path

import pytest
import torch

from cascade.config.stage import SamplerConfig, SubjectConfig
from cascade.evaluate.subject import draw_subject, of_the_way
from cascade.pipeline import Cascade


def test_the_way_goes_from_the_untuned_cascade_to_the_photos() -> None:
    assert of_the_way(0.5, floor=0.4, ceiling=0.6) == pytest.approx(50)
    assert of_the_way(0.3, floor=0.4, ceiling=0.6) == pytest.approx(-50)
    assert of_the_way(0.5, floor=0.6, ceiling=0.6) is None


def test_pictures_are_those_of_the_cascade_with_that_sampler(tiny_cascade: Path) -> None:
    cascade = Cascade.load(tiny_cascade)
    samplers = {"base16": SamplerConfig(name="ddim", steps=2, guidance=2.0)}
    subject = SubjectConfig(identifier="xyz", class_noun="dog")
    drawn = draw_subject(cascade, subject, [3], samplers=samplers, last_stage="base16")
    assert list(drawn.instance.stages) == ["base16"]
    expected = cascade.sample("a xyz dog", [3], samplers=samplers)
    assert torch.equal(drawn.instance.tensor, expected.stages["base16"])
    assert not torch.equal(drawn.of_class.tensor, drawn.instance.tensor)
