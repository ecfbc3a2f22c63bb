"""The pictures that a personalised cascade draws of its subject at the end of a run."""

from pathlib import Path
from typing import Final

import torch

from cascade.data.images import grid, to_pil, write_png
from cascade.dreambooth.plan import Plan, end_prompts
from cascade.progress import progress_bar, stage_steps
from cascade.sampling import Tables, sample_stages
from cascade.stage import Stage

SAMPLES: Final = "samples.png"
"""The grid of these pictures, in a run's folder: a row for each prompt."""
AT_ONCE: Final = 4
"""Pictures that are drawn at once."""


def draw_samples(plan: Plan, tables: Tables, device: torch.device) -> Path:
    """Sample the end's prompts through all stages, as `cascade sample` does by default.

    Returns:
        The grid's path.
    """
    output, each = plan.config.output_dir, plan.config.validation_images
    prompts = end_prompts(plan)
    seeds = [seed for _ in range(0, len(prompts), each) for seed in range(each)]
    stages = (Stage.load(output / folder, device) for folder in plan.stages)
    with progress_bar() as bar:
        on_step = stage_steps(bar, "samples, ")
        images = sample_stages(stages, tables, prompts, seeds, None, AT_ONCE, on_step)
    write_png(grid(to_pil(images), each), output / SAMPLES)
    return output / SAMPLES
