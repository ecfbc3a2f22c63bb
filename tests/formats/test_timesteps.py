"""The named timestep lists are the published ones."""

import pytest
from diffusers.pipelines.deepfloyd_if import timesteps as published

from cascade.config.respacing import SECTIONS, named_timesteps, respaced
from cascade.config.stage import SamplerConfig
from cascade.errors import UserError


@pytest.mark.parametrize("name", SECTIONS)
def test_named_lists(name: str) -> None:
    assert list(named_timesteps(name)) == getattr(published, f"{name}_timesteps")
    sampler = SamplerConfig.parse({"timesteps": name}, "x.toml")
    assert sampler.timesteps == named_timesteps(name)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no list 'smart51'; known are fast27.*super100"):
        SamplerConfig.parse({"timesteps": "smart51"}, "x.toml")


def test_sections() -> None:
    assert respaced((1000,)) == tuple(float(t) for t in range(999, -1, -1))
    # Three sections of 1000: 334, 333 and 333 timesteps; one step is a section's first.
    assert respaced((2, 1, 2)) == (999.0, 667.0, 334.0, 333.0, 0.0)
