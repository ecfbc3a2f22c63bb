"""DreamBooth end to end: from a cascade and a folder of photos to a personalised cascade.

The base is tuned with class-specific prior preservation, then each super-resolution stage on
low/high-resolution pairs of the same photos with a lowered noise augmentation (DreamBooth, section
3.3 and supplement). The text encoder stays frozen.
"""

import shutil
import time
from pathlib import Path
from typing import Final

import torch

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.folders import MANIFEST
from cascade.config.train import FREE
from cascade.data.stream import Stream
from cascade.diffusion.noise import derive_seed
from cascade.dreambooth.batches import DreamBoothSamples
from cascade.dreambooth.concepts import concepts_of
from cascade.dreambooth.forecast import forecast, report_result, report_subject
from cascade.dreambooth.masks import write_sheet
from cascade.dreambooth.plan import (
    Plan,
    all_prompts,
    end_prompts,
    make_plan,
    run_folder,
    run_of,
    tuned_config,
)
from cascade.dreambooth.samples import SAMPLES, draw_samples
from cascade.dreambooth.validation import make_validation
from cascade.files import file_digest, write_bytes
from cascade.pipeline import print_licence
from cascade.progress import is_heard, say
from cascade.sampling import Tables, prompt_tables
from cascade.text.encoder import TextEncoder
from cascade.training.checkpoint import CHECKPOINTS, remove_checkpoints
from cascade.training.distributed import Processes, process_group
from cascade.training.forecast import Probe, tell
from cascade.training.loop import train
from cascade.training.objective import without_variance
from cascade.training.publish import can_grow, publish, published
from cascade.training.run_dir import RunClaim, acquire_run_dir, require_free, text_identity
from cascade.training.shared_encoder import SharedEncoder, open_encoder
from cascade.training.validation import Validation
from cascade.training.weights import StoredWeights

SHEET: Final = "masks.png"
"""The contact sheet of the photos' masks, in a run's folder."""


def personalise(config: DreamBoothConfig) -> Path:
    """Tune a cascade on a subject and write the complete personalised cascade.

    Started again with the same settings it goes on where it was: finished stages are kept, an
    unfinished one resumes from its checkpoint, pictures that exist are not drawn again.

    Returns:
        The folder of the new cascade, `config.output_dir`.
    """
    start = time.monotonic()
    plan, output = make_plan(config), config.output_dir
    group = process_group(_timeout(plan), output)
    with group as processes, acquire_run_dir(_claim(plan), processes):
        unfinished = _unfinished(plan)
        drawing = bool(end_prompts(plan)) and (bool(unfinished) or not (output / SAMPLES).is_file())
        if processes.is_main:
            print_licence(plan.manifest)
            _tell(plan, unfinished, processes)
            _show_masks(plan)
        processes.barrier()  # all processes have looked before the first one writes
        tables = _embed(plan, processes) if unfinished or drawing else {}
        for folder in unfinished:
            _tune(plan, folder, tables, processes)
            processes.barrier()
        if processes.is_main:
            _complete(plan)
        processes.barrier()
        if processes.is_main and drawing:
            say(f"The samples are {draw_samples(plan, tables, processes.device)}.")
        if processes.is_main:
            report_result(plan, time.monotonic() - start)
    return output


def foretell(config: DreamBoothConfig) -> None:
    """Tell what `personalise` would do, and do nothing."""
    plan = make_plan(config)
    with process_group(_timeout(plan), config.output_dir) as processes:
        if processes.is_main:
            require_free(_claim(plan))
            _tell(plan, _unfinished(plan), processes)


def _claim(plan: Plan) -> RunClaim:
    output = plan.config.output_dir
    return RunClaim(output, _identity(plan), _growing(plan), f"with --cascade {output}")


def _unfinished(plan: Plan) -> list[str]:
    """Folders of the stages that are still to be tuned, base first."""
    output = plan.config.output_dir
    return [
        folder
        for folder, stage in plan.stages.items()
        if stage.name in plan.tuned
        and not published(
            output / folder, run_folder(plan, folder), run_of(plan.config, stage).steps
        )
    ]


def _tell(plan: Plan, unfinished: list[str], processes: Processes) -> None:
    report_subject(plan)
    if unfinished and is_heard():  # else nobody sees what the probe costs
        tell(
            forecast(plan, unfinished, Probe(processes.device), processes.world_size),
            processes.device,
        )


def _complete(plan: Plan) -> None:
    """Add what was not tuned, and make the folder a cascade."""
    output, encoder = plan.config.output_dir, plan.manifest.text_encoder
    for folder, stage in plan.stages.items():
        if stage.name not in plan.tuned:
            _copy(plan.source, output, folder)
        elif not run_of(plan.config, stage).keep_checkpoints:
            remove_checkpoints(run_folder(plan, folder) / CHECKPOINTS)
    if (plan.source / encoder).is_dir():  # else there is a store
        _copy(plan.source, output, encoder)
    text = plan.manifest.model_dump_json(indent=2) + "\n"
    write_bytes(text.encode(), output / MANIFEST)


def _identity(plan: Plan) -> dict[str, object]:
    """Return everything that the weights depend on; files by their content, not their path.

    The validation's pictures are none of it, nor is how the text encoder is held.
    """
    config, subject = plan.config, plan.subject
    masks = zip(subject.photos.paths, subject.masks, strict=False)
    weights = {folder: plan.source / folder / "model.safetensors" for folder in plan.stages}
    return {
        "identifier": subject.config.identifier,
        "class_noun": subject.config.class_noun,
        "prompts": {
            "instance": subject.instance_prompt,
            "super_resolution": subject.sr_prompt,
            "class": subject.class_prompt,
        },
        "stages": plan.tuned,
        "seed": config.seed,
        "recipe": config.recipe.model_dump(
            mode="json", exclude={"base": set(FREE), "super_resolution": set(FREE)}
        ),
        "photos": {path.name: file_digest(path) for path in subject.photos.paths},
        "masks": {path.name: mask.origin for path, mask in masks},
        "class_images": [file_digest(path) for path in plan.own.pictures],
        "weights": {folder: file_digest(path) for folder, path in weights.items()},
        "text": text_identity(plan.text),
    }


def _growing(plan: Plan) -> set[str]:
    """Return which numbers of steps may be larger than when the run began."""
    output, growing = plan.config.output_dir, {"base", "super_resolution"}
    for folder, stage in plan.stages.items():
        run = run_of(plan.config, stage)
        if stage.name in plan.tuned and not can_grow(
            run, output / folder, run_folder(plan, folder)
        ):
            growing.discard("base" if stage.low_res is None else "super_resolution")
    return {f"recipe.{name}.steps" for name in growing}


def _tune(plan: Plan, folder: str, tables: Tables, processes: Processes) -> None:
    """Tune one stage and publish it."""
    config, run_dir = plan.config, run_folder(plan, folder)
    run = run_of(config, plan.stages[folder])
    concepts = concepts_of(plan, folder, tables, processes)
    table = tables[plan.stages[folder].text]
    stage = plan.stages[folder]
    if run.objective.variance == "drop":
        stage = without_variance(stage)
    stage = tuned_config(plan, stage)
    samples = DreamBoothSamples(stage, concepts, derive_seed(config.seed, folder))
    validation: Validation | None = None
    if run.validate_every is not None:
        validation = make_validation(plan, folder, samples, tables, processes)
    run_dir.mkdir(parents=True, exist_ok=True)
    tuned = train(
        stage,
        StoredWeights(plan.source / folder),
        Stream(samples),
        table,
        run,
        run_dir,
        processes,
        validation,
    )
    publish(tuned, config.output_dir / folder, run_dir, processes)


def _embed(plan: Plan, processes: Processes) -> Tables:
    """Embed the few prompts of the run once; the encoder is freed on return."""
    host = torch.device("cpu")
    encoder = open_encoder(plan.text, plan.config.encoder_mode, host, processes)
    tables = prompt_tables(encoder, sorted(all_prompts(plan)), plan.stages.values())
    if processes.is_main and isinstance(encoder, TextEncoder | SharedEncoder):
        say(f"The text encoder ({encoder.mode}) has read the prompts and is freed.")
    return tables


def _timeout(plan: Plan) -> float:
    """Return the longest of the stages' time-outs, minutes."""
    runs = (run_of(plan.config, stage) for stage in plan.stages.values())
    return max(run.parallel.timeout_minutes for run in runs)


def _copy(source: Path, output: Path, folder: str) -> None:
    """Copy a folder of the source cascade whole or not at all."""
    if (output / folder).is_dir():
        return
    partial = output / f".{folder}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source / folder, partial)
    partial.rename(output / folder)


def _show_masks(plan: Plan) -> None:
    """Write the masks' contact sheet and say where, before the long work begins."""
    if not plan.subject.masks:
        return
    sheet = plan.config.output_dir / SHEET
    write_sheet(plan.subject.photos, plan.subject.masks, sheet)
    say(f"The photos' masks are shown in {sheet}; have a look.")
