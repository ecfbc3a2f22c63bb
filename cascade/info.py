"""What a cascade folder holds, for people."""

import math
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cascade.config.stage import (
    AugmentationLevel,
    SamplerConfig,
    StageConfig,
    noise_in_grey_levels,
)
from cascade.pipeline import cascade_folder, read_manifest
from cascade.stage import read_stage_config, weight_shapes


def describe(path: str) -> RenderableType:
    """A table of a cascade's stages, and its licence.

    Raises:
        UserError: no such cascade, or it is not whole.
    """
    folder = cascade_folder(path)
    manifest = read_manifest(folder)
    stages = [(folder / name, read_stage_config(folder / name)) for name in manifest.stages]
    table = Table(title=f"Cascade {manifest.name} ({folder})")
    table.add_column("")
    for _, config in stages:
        table.add_column(config.name)
    columns = [dict(_properties(place, config)) for place, config in stages]
    for row in dict.fromkeys(name for column in columns for name in column):
        table.add_row(row, *(column.get(row, "-") for column in columns))
    licence = Text(f"Licence: {manifest.licence or 'not stated'}")
    return Group(table, licence)


def count_parameters(weights: Path) -> int:
    """Number of values in a safetensors file, read from its header.

    Raises:
        UserError: the file is missing or damaged.
    """
    return sum(math.prod(shape) for shape in weight_shapes(weights).values())


def _properties(folder: Path, config: StageConfig) -> Iterator[tuple[str, str]]:
    yield "makes", f"{config.size} x {config.size}"
    yield "parameters", f"{count_parameters(folder / 'model.safetensors') / 1e6:.2f} M"
    yield "predicts", config.diffusion.prediction
    yield "schedule", config.diffusion.schedule
    yield "learned variance", "yes" if config.unet.learned_variance else "no"
    yield "sampler", _sampler(config.sampler)
    yield "text", f"{config.text.max_length} tokens, cleaning {config.text.cleaning}"
    yield "null text", config.text.null
    yield "resize kernel", config.resize
    if config.low_res is not None:
        low, high = (_level(level) for level in config.low_res.training_levels)
        yield "enlarges", f"{config.low_res.size} x {config.low_res.size}"
        yield "noise added", f"at {config.low_res.noise_at} resolution"
        yield "augmentation, trained", low if low == high else f"{low} to {high}"
        yield "augmentation, sampling", _level(config.low_res.sampling_level)
    if config.subject is not None:
        yield "subject", f"a {config.subject.identifier} {config.subject.class_noun}"
    yield "licence", config.licence or "not stated"


def _sampler(sampler: SamplerConfig) -> str:
    steps = len(sampler.timesteps or ()) or sampler.steps
    return f"{sampler.name}, {steps} steps, guidance {sampler.guidance:g}"


def _level(level: AugmentationLevel) -> str:
    if level.unit == "time":
        return f"time {level.value:g}"
    return f"variance {level.value:g} ({noise_in_grey_levels(level.value):.1f} grey levels)"
