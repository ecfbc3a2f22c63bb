"""What a stage draws while it is tuned: the subject's prompts, and rows of its photos."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.data.images import resize, square, to_tensors
from cascade.dreambooth.batches import DreamBoothSamples
from cascade.dreambooth.plan import Plan, end_prompts, photo_prompt, run_folder
from cascade.sampling import Tables
from cascade.training.distributed import Processes
from cascade.training.other_stages import other_stages
from cascade.training.panels import X0Panel
from cascade.training.validation import Draw, SampleGrid, Validation, cascade_grid


def make_validation(
    plan: Plan, folder: str, samples: DreamBoothSamples, tables: Tables, processes: Processes
) -> Validation:
    """Return what the stage of a folder draws.

    Args:
        samples: the rows it is tuned on.
        tables: embeddings of every prompt of the run, by the conventions of every stage.
    """
    stage, each = samples.stage, plan.config.validation_images
    draws: list[Draw] = list(_grids(plan, stage, tables, processes))
    rows = samples.rows(range(each))
    draws.append(X0Panel(rows, tables[stage.text].rows(rows.prompts), processes))
    return Validation(draws, run_folder(plan, folder), processes)


def _grids(
    plan: Plan, stage: StageConfig, tables: Tables, processes: Processes
) -> list[SampleGrid]:
    each = plan.config.validation_images
    chosen = plan.subject.validation_prompts or (photo_prompt(plan, stage),)
    prompts = [prompt for prompt in chosen for _ in range(each)]
    low_res = _low_res_of(plan, stage, len(prompts))
    if not plan.config.validation_cascade:
        return [SampleGrid(prompts, tables, each, low_res, processes=processes)]
    others = other_stages(_latest(plan), stage)
    if low_res is None:
        return [SampleGrid(prompts, tables, each, None, tuple(others.later), processes=processes)]
    return [
        SampleGrid(prompts, tables, each, low_res, processes=processes),
        cascade_grid(end_prompts(plan), tables, each, others, processes),
    ]


def _latest(plan: Plan) -> Iterator[tuple[Path, StageConfig]]:
    """Yield the folder of every stage, base first: where it has been tuned already, the result."""
    for name, stage in plan.stages.items():
        tuned = plan.config.output_dir / name
        done = (tuned / "model.safetensors").is_file()
        yield (tuned if done else plan.source / name), stage


def _low_res_of(plan: Plan, stage: StageConfig, count: int) -> Tensor | None:
    """Downscale the photos, by turns, by the checkpoint's kernel."""
    if stage.low_res is None:
        return None
    size, kernel = stage.low_res.size, stage.resize
    photos = [plan.subject.images[i % len(plan.subject.images)] for i in range(count)]
    return to_tensors([resize(square(photo), size, kernel) for photo in photos])
