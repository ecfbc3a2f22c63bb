"""What is swept: the knobs of each part, the values tried, and the settings that they make."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce

from cascade.config.base import Frozen, apply_override
from cascade.config.dreambooth import Recipe
from cascade.config.stage import SamplerConfig
from cascade.errors import UserError

SUBJECT_PROMPT = "a {identifier} {class_noun}"


class Part(StrEnum):
    """What is tuned: a stage's training, or how a tuned base is sampled."""

    base = "base"
    super_resolution = "super-resolution"
    sampling = "sampling"


class Settings(Frozen):
    """Everything that a knob may turn."""

    recipe: Recipe
    sampler: SamplerConfig
    """The base's."""
    sr_prompt: str = SUBJECT_PROMPT
    """What super-resolution is told of the photos."""

    def used(self, part: Part) -> dict[str, object]:
        """Those that a part's result depends on, as JSON holds them."""
        return self.model_dump(mode="json", exclude=_UNUSED[part])


@dataclass(frozen=True)
class Knob:
    """One of the settings and the values tried, written as in TOML."""

    name: str
    path: str
    values: tuple[str, ...]


_BASE, _SR = "recipe.base", "recipe.super_resolution"

KNOBS: Mapping[Part, tuple[Knob, ...]] = {
    Part.base: (
        Knob("learning_rate", f"{_BASE}.optimizer.learning_rate", ("5e-5", "1e-4", "2e-4", "4e-4")),
        Knob("steps", f"{_BASE}.steps", ("100", "200", "300", "400", "600")),
        Knob("batch", f"{_BASE}.batch_size", ("2", "4", "8")),
        Knob("schedule", f"{_BASE}.optimizer.schedule", ("constant", "linear", "cosine")),
        Knob("lambda", "recipe.prior.weight", ("0", "0.3", "1", "2")),
        Knob("class_images", "recipe.prior.images", ("25", "50", "100", "200")),
        Knob("caption_dropout", "recipe.prior.caption_dropout", ("0", "0.1", "0.25", "0.5")),
        Knob("flip", "recipe.flip", ("false", "true")),
        Knob("center_crop", "recipe.center_crop", ("true", "false")),
    ),
    Part.super_resolution: (
        Knob("learning_rate", f"{_SR}.optimizer.learning_rate", ("5e-5", "1e-4", "2e-4", "4e-4")),
        Knob("steps", f"{_SR}.steps", ("100", "200", "300", "600")),
        Knob("batch", f"{_SR}.batch_size", ("2", "4", "8")),
        Knob(
            "augmentation", "recipe.augmentation", ("dreambooth", "dreambooth-reference", "imagen")
        ),
        Knob("prompt", "sr_prompt", (SUBJECT_PROMPT, "a {class_noun}")),
    ),
    Part.sampling: (
        Knob("guidance", "sampler.guidance", ("1", "2", "3", "5", "8")),
        Knob("sampler", "sampler.name", ("dpmpp_2m", "ddim", "heun", "ancestral")),
        Knob("steps", "sampler.steps", ("8", "16", "32", "64")),
        Knob("threshold", "sampler.threshold.kind", ("none", "static", "dynamic")),
        Knob("percentile", "sampler.threshold.percentile", ("0.95", "0.98", "0.995")),
    ),
}
# Settings on which a part's result does not depend.
_UNUSED: Mapping[Part, dict[str, bool | dict[str, bool]]] = {
    Part.base: {"sr_prompt": True, "recipe": {"super_resolution": True, "augmentation": True}},
    Part.super_resolution: {},
    Part.sampling: {"sr_prompt": True, "recipe": {"super_resolution": True, "augmentation": True}},
}


@dataclass(frozen=True)
class Setting:
    """One row of a table: what it is called there, and all its settings."""

    label: str
    settings: Settings


Table = tuple[Setting, ...]


def key_of(value: object) -> str:
    """A short name for everything in a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def coordinates(part: Part, start: Settings, only: Sequence[str] = ()) -> dict[str, Table]:
    """One table a knob: the others stay as they are in the recipe.

    Args:
        part: whose knobs are turned.
        start: the recipe, which stands in every table.
        only: names of the knobs turned; all if none is named.

    Raises:
        UserError: a knob is unknown, or a value cannot be.
    """
    knobs = [_knob(part, name) for name in only] or KNOBS[part]
    return {knob.name: _column(knob, start) for knob in knobs}


def cross(part: Part, start: Settings, given: Sequence[str]) -> dict[str, Table]:
    """One table of every combination of some knobs' values.

    Args:
        part: whose knobs are turned.
        start: the recipe.
        given: `knob=value,value,...`, each.

    Raises:
        UserError: a knob is unknown, a value cannot be, or there is no `=`.
    """
    rows: list[Setting] = [Setting("", start)]
    names = []
    for text in given:
        name, equals, values = text.partition("=")
        if not equals:
            raise UserError(f"--full {text} has no 'knob=value,value' form; write steps=100,300.")
        knob = _knob(part, name)
        names.append(name)
        rows = [
            Setting(f"{row.label}, {value}".strip(", "), _turned(knob, row.settings, value))
            for row in rows
            for value in values.split(",")
        ]
    return {" x ".join(names): tuple(rows)}


def _knob(part: Part, name: str) -> Knob:
    known = {knob.name: knob for knob in KNOBS[part]}
    if name not in known:
        raise UserError(f"{part} has no knob '{name}'; it has {', '.join(known)}.")
    return known[name]


def _column(knob: Knob, start: Settings) -> Table:
    rows = [Setting(value, _turned(knob, start, value)) for value in knob.values]
    if all(row.settings != start for row in rows):
        value = reduce(getattr, knob.path.split("."), start)
        rows.insert(0, Setting(str(value), start))
    return tuple(
        replace(row, label=f"{row.label} (recipe)") if row.settings == start else row
        for row in rows
    )


def _turned(knob: Knob, start: Settings, value: str) -> Settings:
    values = start.model_dump()
    if knob.path == "sampler.steps":  # a checkpoint's list of timesteps would stand in for them
        values["sampler"]["timesteps"] = None
    apply_override(values, f"{knob.path}={value}")
    return Settings.parse(values, f"{knob.name}={value}")
