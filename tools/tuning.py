"""What the tools that tune subjects share: the stages there are, and seconds of each part."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.console import Console

from cascade.cli.sample import usable_device
from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.stage import StageConfig
from cascade.dreambooth.plan import make_plan
from cascade.dreambooth.prior import Prior, class_images, default_folder, given_class_images
from cascade.pipeline import cascade_folder, read_manifest
from cascade.progress import progress_bar
from cascade.sampling import prompt_table
from cascade.stage import Stage, read_stage_config
from cascade.text.source import ready


def stage_configs(cascade: str) -> list[StageConfig]:
    """The configurations of a cascade's stages, base first, without their weights."""
    folder = cascade_folder(cascade)
    return [read_stage_config(folder / name) for name in read_manifest(folder).stages]


def draw_class_images(config: DreamBoothConfig, console: Console) -> float | None:
    """Draw the class images which the base's tuning would draw first.

    Returns:
        Seconds of drawing; None where there was nothing to draw.
    """
    if config.recipe.prior is None or given_class_images(config.class_data_dir):
        return None
    plan = make_plan(config)
    folder, base = next(iter(plan.stages.items()))
    prompt = plan.subject.class_prompt
    table = prompt_table(
        ready(plan.text, config.encoder_mode), config.recipe.prior.prompts(prompt), base
    )
    stage = Stage.load(plan.source / folder, usable_device(None))
    prior = Prior((stage,), prompt, config.recipe.prior, config.seed)
    place = (config.class_data_dir or default_folder()) / prior.key()
    if len(list(place.glob("*.png"))) >= prior.config.images:
        return None
    start = time.perf_counter()
    with progress_bar(console) as bar:
        task = bar.add_task("class images", total=prior.config.images, details="")
        class_images(
            prior,
            table,
            config.class_data_dir,
            on_images=lambda done, total: bar.update(task, completed=done, total=total),
        )
    return time.perf_counter() - start


def training_seconds(log: Sequence[Mapping[str, float]]) -> float:
    """Seconds that a run spent on its steps, over all its starts, from its statuses."""
    images = pairwise([0.0, *(line["images"] for line in log)])
    return sum(
        (now - before) / line["images_per_second"]
        for (before, now), line in zip(images, log, strict=True)
    )
