"""A model's own options under those of a client."""

from collections.abc import Mapping
from typing import Any

from cascade.config.sample import SampleOptions
from cascade.config.stage import SamplerConfig

_STEPS = frozenset({"steps", "timesteps"})  # either takes the place of both
_OF_A_SAMPLER = {
    "sampler": frozenset({"name"}),
    "steps": _STEPS,
    "timesteps": _STEPS,
    "guidance": frozenset({"guidance"}),
    "guidance_interval": frozenset({"guidance_interval"}),
    "precision": frozenset({"precision"}),
}


def under(own: SampleOptions, asked: SampleOptions) -> SampleOptions:
    """Return what is asked, and where that says nothing, what a model has of its own.

    What is asked of every stage comes before what the model has for one of them.

    Raises:
        UserError: both together are not valid.
    """
    values, given = _said(own), _said(asked)
    replaced = frozenset[str]().union(*(_OF_A_SAMPLER.get(name, ()) for name in given))
    if replaced & _STEPS:
        values = _without(values, _STEPS)
    if "noise_level" in given:
        values.pop("levels", None)
    samplers = {
        stage: _without(_settings(sampler), replaced)
        for stage, sampler in values.get("samplers", {}).items()
    }
    for stage, sampler in given.get("samplers", {}).items():
        wanted = _settings(sampler)
        gone = _STEPS if wanted.keys() & _STEPS else frozenset[str]()
        samplers[stage] = _without(samplers.get(stage, {}), gone) | wanted
    merged = values | given
    if samplers:
        merged["samplers"] = samplers
    if "levels" in given:
        merged["levels"] = {**values.get("levels", {}), **given["levels"]}
    return SampleOptions.parse(merged, "what is asked")


def _said(options: SampleOptions) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in options.model_fields_set}
    return {name: value for name, value in values.items() if value is not None}


def _settings(sampler: Any) -> dict[str, Any]:
    return sampler.model_dump() if isinstance(sampler, SamplerConfig) else dict(sampler)


def _without(values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
