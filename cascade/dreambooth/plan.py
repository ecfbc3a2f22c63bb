"""The plan of a personalisation, checked before any long work starts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cascade.config.dreambooth import AUGMENTATIONS, DreamBoothConfig
from cascade.config.folders import (
    CascadeManifest,
    cascade_folder,
    check_chain,
    read_manifest,
    read_stage_config,
    stages_named,
)
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.finding import SortedFiles
from cascade.dreambooth.class_images import default_folder, own_class_images
from cascade.dreambooth.subject import Subject, read_subject
from cascade.errors import UserError
from cascade.files import require_writable
from cascade.stage import check_weights
from cascade.text.files import EncoderFiles
from cascade.text.prompts import open_text
from cascade.text.store import EmbeddingStore
from cascade.training.objective import check_variance
from cascade.training.optim import check_optimizer
from cascade.training.resources import require_disk, require_room
from cascade.training.trackers import check_trackers


@dataclass(frozen=True)
class Plan:
    """Everything a personalisation needs.

    Attributes:
        config: the run's settings.
        source: the folder of the cascade to personalise.
        manifest: what that folder holds.
        stages: folder name and configuration of each of its stages, base first.
        tuned: names of the stages that are tuned.
        subject: photos, identifier, prompts.
        text: the encoder, not loaded, or the store of embeddings used instead.
        own: the person's own class pictures; none where no stage uses class pictures.
    """

    config: DreamBoothConfig
    source: Path
    manifest: CascadeManifest
    stages: dict[str, StageConfig]
    tuned: tuple[str, ...]
    subject: Subject
    text: EncoderFiles | EmbeddingStore
    own: SortedFiles

    @property
    def missing_class_images(self) -> int:
        """How many are drawn beside the person's own, of the number that the recipe asks for."""
        prior = self.config.recipe.prior
        return 0 if prior is None else max(0, prior.images - len(self.own.pictures))


def make_plan(config: DreamBoothConfig) -> Plan:
    """Check the settings, the cascade and the photos."""
    source = cascade_folder(config.cascade)
    manifest = read_manifest(source)
    stages = {name: read_stage_config(source / name) for name in manifest.stages}
    chosen = stages_named(stages.values(), config.stages)
    for name, stage in stages.items():
        check_weights(source / name, stage)
    tuned = tuple(stage.name for stage in chosen)
    runs = [(stage, run_of(config, stage)) for stage in chosen]
    for stage, run in runs:
        check_variance(stage, run.objective)
        check_optimizer(run.optimizer)
        check_trackers(run, config.output_dir)
    looked_at_meanwhile = any(run.validate_every for _, run in runs)
    if (config.validation_prompts or looked_at_meanwhile) and not config.validation_images:
        raise UserError(
            "Validation prompts or steps are given, and no validation images are wanted: ask for "
            "some, or leave the others out."
        )
    if config.validation_cascade and not (looked_at_meanwhile and len(stages) > 1):
        raise UserError(
            "Validation pictures are to be completed by the other stages, and there are no "
            "validation steps or no other stages; give --validation-steps, or leave it out."
        )
    require_room(runs)
    copied = [source / name for name, stage in stages.items() if stage.name not in tuned]
    require_disk(config.output_dir, runs, _size_of([*copied, source / manifest.text_encoder]))
    text = open_text(source / manifest.text_encoder, config.embeddings)
    check_chain(list(stages.values()), text.width, source)
    earlier = [subject for stage in stages.values() for subject in stage.subjects]
    subject = read_subject(config, chosen, earlier, text.tokenizer)
    prior, own = config.recipe.prior, SortedFiles()
    uses = [s.size for s in chosen if prior and (s.low_res is None or prior.super_resolution)]
    if uses:
        own = own_class_images(config.class_data_dir, subject.photos.paths, max(uses))
    if prior is not None or config.recipe.scene_rows is not None:
        require_writable(config.class_data_dir or default_folder())
    return Plan(config, source, manifest, stages, tuned, subject, text, own)


def _size_of(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*"))


def run_of(config: DreamBoothConfig, stage: StageConfig) -> TrainConfig:
    """Return a stage's training settings: the base's, or those of super-resolution."""
    return config.recipe.base if stage.low_res is None else config.recipe.super_resolution


def tuned_config(plan: Plan, stage: StageConfig) -> StageConfig:
    """Return a tuned stage's configuration: it records the subject and the augmentation level.

    Earlier subjects stay. The level the stage is tuned at is the level it samples at: DreamBooth's
    supplement calls Imagen's recipes *and test parameters* unfit for few photos.
    """
    subject = plan.subject.config
    others = (earlier for earlier in stage.subjects if earlier != subject)
    changes: dict[str, object] = {"subjects": (*others, subject)}
    if stage.low_res is not None:
        augmentation = AUGMENTATIONS[plan.config.recipe.augmentation]
        changes["low_res"] = stage.low_res.model_copy(
            update={
                "training_levels": augmentation.training,
                "sampling_level": augmentation.sampling or stage.low_res.sampling_level,
            }
        )
    return stage.model_copy(update=changes)


def run_folder(plan: Plan, folder: str) -> Path:
    """Return the folder of a stage's run: checkpoints, log, validation images."""
    return plan.config.output_dir / "runs" / folder


def end_prompts(plan: Plan) -> list[str]:
    """Return the prompts of the samples at the end, one per image."""
    prompts = plan.subject.validation_prompts or (plan.subject.instance_prompt,)
    return [prompt for prompt in prompts for _ in range(plan.config.validation_images)]


def all_prompts(plan: Plan) -> set[str]:
    """Return every prompt that the run needs embedded."""
    recipe, subject = plan.config.recipe, plan.subject
    prompts = {subject.instance_prompt, subject.sr_prompt, *subject.validation_prompts}
    if recipe.prior is not None:
        prompts.update((subject.class_prompt, *subject.class_prompts))
    if recipe.scene_rows is not None:
        prompts.update(scene.prompt for scene in recipe.scenes)
        prompts.update(recipe.in_scenes(subject.instance_prompt))
        prompts.update(recipe.in_scenes(subject.sr_prompt))
    return prompts


def photo_prompt(plan: Plan, stage: StageConfig) -> str:
    """Return the caption of the photos for a stage."""
    subject = plan.subject
    return subject.instance_prompt if stage.low_res is None else subject.sr_prompt
