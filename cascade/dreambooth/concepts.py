"""The concepts that a stage is tuned on, with the images that are sampled for them first."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from cascade.config.dreambooth import DrawnConfig, PriorConfig, SceneRowsConfig
from cascade.diffusion.noise import derive_seed
from cascade.dreambooth.batches import Concept, PixelWeighting, presized
from cascade.dreambooth.class_images import Drawing, make_pictures, read_pictures, read_squares
from cascade.dreambooth.compose import InScenes, cut_out
from cascade.dreambooth.plan import Plan, photo_prompt
from cascade.progress import progress_bar
from cascade.sampling import Tables
from cascade.stage import Stage
from cascade.text.cleaning import names_side
from cascade.text.store import EmbeddingStore
from cascade.training.distributed import Processes
from cascade.training.run_dir import text_identity

CLASS_IMAGES, SCENES = "class images", "scenes"


def concepts_of(
    plan: Plan, folder: str, tables: Tables, processes: Processes
) -> tuple[Concept, ...]:
    """Return the photos, and the class images where the prior of this stage is preserved.

    What is missing of the pictures that the frozen cascade draws is drawn, by all processes
    together.
    """
    drawn = {
        name: draw(name, drawing, plan, tables, processes)
        for name, drawing in drawings(plan, folder, processes.device).items()
    }
    found = [_photos(plan, folder, drawn.get(SCENES))]
    prior = prior_of(plan, folder)
    if prior is not None:
        found.append(_class(plan, folder, prior, drawn.get(CLASS_IMAGES, [])))
    return tuple(presized(concept, plan.stages[folder]) for concept in found)


def drawings(plan: Plan, folder: str, device: torch.device) -> dict[str, Drawing]:
    """Return what the frozen cascade samples before a stage is tuned, by its name."""
    sets = wanted(plan, folder)
    if not sets:
        return {}
    frozen = tuple(Stage.load(plan.source / name, device) for name in up_to(plan, folder))
    text, subject, seed = _embedded_by(plan), plan.subject, plan.config.seed
    empty = tuple(scene.prompt for scene in plan.config.recipe.scenes)
    shown = {
        CLASS_IMAGES: (subject.class_prompts, seed),
        SCENES: (empty, derive_seed(seed, SCENES)),
    }
    return {
        name: Drawing(frozen, shown[name][0], config, shown[name][1], text)
        for name, config in sets.items()
    }


def wanted(plan: Plan, folder: str) -> dict[str, DrawnConfig]:
    """Return how many images a stage's tuning asks the frozen cascade for, by name."""
    sets: dict[str, DrawnConfig] = {}
    prior, rows = prior_of(plan, folder), _scene_rows(plan, folder)
    if prior is not None and (missing := plan.missing_class_images):
        sets[CLASS_IMAGES] = prior.model_copy(update={"images": missing})
    if rows is not None:
        sets[SCENES] = rows
    return sets


def up_to(plan: Plan, folder: str) -> list[str]:
    """Return the stages that sample what a stage is tuned on: those before it, and itself."""
    return list(plan.stages)[: list(plan.stages).index(folder) + 1]


def _embedded_by(plan: Plan) -> str:
    """Identify what of the text encoder moves embeddings by more than roundings."""
    stored = isinstance(plan.text, EmbeddingStore) and plan.text.conventions.quantised
    quantised = stored or plan.config.encoder_mode == "int8"
    return json.dumps({**text_identity(plan.text), "quantised": quantised})


def draw(
    name: str, drawing: Drawing, plan: Plan, tables: Tables, processes: Processes
) -> list[Path]:
    """Make what is missing of a set, all processes together; return all its paths."""
    with progress_bar(shown=processes.is_main) as bar:
        task = bar.add_task(name, total=drawing.config.images, details="")
        paths = make_pictures(
            drawing,
            tables,
            plan.config.class_data_dir,
            processes.rank,
            processes.world_size,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
        bar.update(task, completed=len(paths))
    processes.barrier()
    return paths


def prior_of(plan: Plan, folder: str) -> PriorConfig | None:
    """Return the prior's settings where this stage preserves it."""
    prior = plan.config.recipe.prior
    is_base = plan.stages[folder].low_res is None
    return prior if prior is not None and (is_base or prior.super_resolution) else None


def _scene_rows(plan: Plan, folder: str) -> SceneRowsConfig | None:
    """Return the settings of this stage's rows with the subject in scenes."""
    rows = plan.config.recipe.scene_rows
    is_base = plan.stages[folder].low_res is None
    return rows if rows is not None and (is_base or rows.super_resolution) else None


def _photos(plan: Plan, folder: str, scenes: list[Path] | None) -> Concept:
    """Return the photos, and the subject in the scenes, if there are any."""
    recipe, subject = plan.config.recipe, plan.subject
    prompt = photo_prompt(plan, plan.stages[folder])
    concept = Concept(
        term="instance",
        images=subject.images,
        prompts=(prompt,),
        flip=recipe.flip and not names_side(prompt),
        center_crop=recipe.center_crop,
    )
    if recipe.masks is None:
        return concept
    masks = tuple(mask.image for mask in subject.masks)
    pixels = PixelWeighting(masks, recipe.masks.unmasked_weight, recipe.masks.unmasked_probability)
    if scenes is None:
        return replace(concept, pixels=pixels)
    size = plan.stages[folder].size
    pairs = zip(subject.images, masks, strict=True)
    in_scenes = InScenes(
        config=recipe.masks.scenes,
        cutouts=tuple(cut_out(photo, mask, size) for photo, mask in pairs),
        scenes=read_pictures(scenes),
        prompts=recipe.in_scenes(prompt),
    )
    return replace(concept, pixels=pixels, in_scenes=in_scenes)


def _class(plan: Plan, folder: str, prior: PriorConfig, drawn: list[Path]) -> Concept:
    """Return the class images: the user's own, then those that were sampled."""
    own, said = plan.own.pictures, plan.subject.class_prompts
    return Concept(
        term="prior",
        images=read_squares([*own, *drawn], plan.stages[folder]),
        # Of a person's own pictures nobody knows the scenes.
        prompts=(
            *(plan.subject.class_prompt for _ in own),
            *(said[index % len(said)] for index in range(len(drawn))),
        ),
        weight=prior.weight,
        caption_dropout=prior.caption_dropout,
    )
