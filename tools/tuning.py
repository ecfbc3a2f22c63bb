"""What the tools that tune subjects share: stages, cascades to compare, seconds of each part."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.folders import cascade_folder, read_manifest, read_stage_config
from cascade.config.stage import StageConfig
from cascade.dreambooth.kinds import draw, drawings
from cascade.dreambooth.plan import all_prompts, make_plan
from cascade.environment import usable_device
from cascade.pipeline import Cascade
from cascade.sampling import prompt_tables
from cascade.text.source import ready
from cascade.train.distributed import processes


def stage_configs(cascade: str) -> list[StageConfig]:
    """The configurations of a cascade's stages, base first, without their weights."""
    folder = cascade_folder(cascade)
    return [read_stage_config(folder / name) for name in read_manifest(folder).stages]


def load(path: Path | str) -> Cascade:
    """A cascade on the fastest device here, which samples in bf16 where the device has it."""
    cascade = Cascade.load(path, usable_device(None))
    stages = []
    for stage in cascade.stages:
        sampler = stage.config.sampler.model_copy(update={"precision": "auto"})
        config = stage.config.model_copy(update={"sampler": sampler})
        stages.append(stage.with_network(stage.network, config))
    return Cascade(cascade.manifest, cascade.encoder, stages)


def draw_in_advance(config: DreamBoothConfig) -> dict[str, float]:
    """Draw the pictures which the base's tuning would draw first.

    Returns:
        Seconds of drawing by what was drawn; nothing of what was there.
    """
    plan = make_plan(config)
    folder, base = next(iter(plan.stages.items()))
    encoder = ready(plan.text, config.encoder_mode)
    tables = prompt_tables(encoder, sorted(all_prompts(plan)), [base])
    seconds = {}
    with processes() as here:
        for name, drawing in drawings(plan, folder, here.device).items():
            if not all(path.is_file() for path in drawing.paths(config.class_data_dir)):
                start = time.perf_counter()
                draw(name, drawing, plan, tables, here)
                seconds[name] = time.perf_counter() - start
    return seconds


def training_seconds(log: Sequence[Mapping[str, float]]) -> float:
    """Seconds that a run spent on its steps, over all its starts, from its statuses."""
    images = pairwise([0.0, *(line["images"] for line in log)])
    return sum(
        (now - before) / line["images_per_second"]
        for (before, now), line in zip(images, log, strict=True)
    )
