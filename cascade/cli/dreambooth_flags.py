"""The flags of `cascade dreambooth`: diffusers' names, and the settings each stands for."""

from collections.abc import Mapping
from typing import Any, Final, get_args

import typer

from cascade.cli import values
from cascade.cli.options import Flag
from cascade.cli.shared import TEXT_FLAGS
from cascade.cli.values import comma_separated
from cascade.config.dreambooth import Recipe
from cascade.config.recipes import RECIPES
from cascade.config.trackers import TrackerName

BASE, SUPER_RESOLUTION = "base", "super_resolution"
PRECISIONS: Final = {"no": "fp32", "bf16": "bf16", "auto": "auto"}
PRIOR, MASKS, TRAINING = "Prior preservation", "Masks and scenes", "Training"
SR, REPORT = "Super-resolution", "Validation"


def scenes_of(text: str) -> tuple[dict[str, str], ...]:
    """Parse scenes: 'on the beach = a beach, in the snow = a snowy landscape'."""
    pairs = (part.partition("=") for part in comma_separated(text))
    return tuple({"phrase": one.strip(), "prompt": other.strip()} for one, _, other in pairs)


def trackers_of(text: str) -> tuple[str, ...]:
    """Parse trackers, comma-separated, or diffusers' words for all of them and for none."""
    return {"all": get_args(TrackerName), "none": ()}.get(text, comma_separated(text))


def precision_of(text: str) -> str:
    """Parse a precision by diffusers' name."""
    if text not in PRECISIONS:
        raise typer.BadParameter(f"'{text}' is none; take one of {', '.join(PRECISIONS)}.")
    return PRECISIONS[text]


def in_recipes(*paths: str) -> str:
    """Format what a flag replaces in each recipe: 'paper 1000, mini 375, deepfloyd 150'."""
    each = {name: _told_of(recipe, paths) for name, recipe in RECIPES.items()}
    alike = set(each.values())
    if len(alike) == 1:
        return alike.pop()
    return ", ".join(f"{name} {value}" for name, value in each.items())


def as_flags(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's values with batches as diffusers counts them: those of one pass."""
    found = recipe.model_dump()
    for run in (found[BASE], found[SUPER_RESOLUTION]):
        run["batch_size"] //= run["gradient_accumulation_steps"]
    return found


def _told_of(recipe: Recipe, paths: tuple[str, ...]) -> str:
    """Format a recipe's number; super-resolution's too where the flag replaces both."""
    found = as_flags(recipe)
    told = [_word(_get(found, path)) for path in paths if _has(found, path)]
    return " and ".join(dict.fromkeys(told)) or "none"


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple) and value and isinstance(value[0], (str, dict)):
        return f"{len(value)}"
    if value is None or value == () or isinstance(value, bool):
        return "on" if value is True else "off" if value is False else "none"
    return next((flag for flag, setting in PRECISIONS.items() if setting == value), str(value))


def _has(found: Mapping[str, Any], path: str) -> bool:
    """Return whether a recipe has a number: not where the part that holds it is off."""
    outer, _, _ = path.rpartition(".")
    return not outer or _get(found, outer) is not None


def _get(found: Mapping[str, Any], path: str) -> Any:
    """Return one number of a recipe; None where it has none."""
    inner: Any = found
    for name in path.split("."):
        inner = None if inner is None else inner[int(name) if name.isdigit() else name]
    return inner


def _number(name: str, panel: str | None, *paths: str, **options: Any) -> Flag:
    """Make a flag of the recipe's numbers; its help lists each recipe's."""
    within = tuple(f"recipe.{path}" for path in paths)
    return Flag(name, within, panel, shown=in_recipes(*paths), **options)


def _both(name: str, path: str, **options: Any) -> Flag:
    """Make a flag of the training of every stage."""
    paths = (f"{BASE}.{path}", f"{SUPER_RESOLUTION}.{path}")
    return _number(name, options.pop("panel", TRAINING), *paths, **options)


NUMBERS: Final = (
    _number("center_crop", None, "center_crop", names=("--center-crop/--random-crop",)),
    _number("flip", None, "flip"),
    _number("prior_loss_weight", PRIOR, "prior.weight"),
    _number("num_class_images", PRIOR, "prior.images", help="how many class images"),
    _number("class_scenes", PRIOR, "prior.in_scenes"),
    _number("class_variations", PRIOR, "prior.variations", kind=str, parser=comma_separated,
            metavar="TEXT, TEXT", note="; '' is not at all"),
    _number("prior_caption_dropout", PRIOR, "prior.caption_dropout"),
    _number("sample_batch_size", PRIOR, "prior.batch_size", "masks.scenes.batch_size"),
    _number("sr_prior_preservation", PRIOR, "prior.super_resolution"),
    _number("masks", MASKS, "masks.source", kind=str, metavar="auto|alpha|DIR|none",
            note=" (auto); none is plain DreamBooth"),
    _number("unmasked_weight", MASKS, "masks.unmasked_weight"),
    _number("unmasked_probability", MASKS, "masks.unmasked_probability"),
    _number("scene_share", MASKS, "masks.scenes.share"),
    _number("scene_weight", MASKS, "masks.scenes.scene_weight"),
    _number("scenes", MASKS, "scenes", kind=str, parser=scenes_of,
            metavar="PHRASE = PROMPT, ...",
            note=": 'on the beach = a beach, in the snow = a snowy landscape'"),
    _number("num_scene_images", MASKS, "masks.scenes.images", help="how many scenes"),
    _number("sr_scenes", MASKS, "masks.scenes.super_resolution"),
    _number("max_train_steps", TRAINING, "base.steps", note=" of the base"),
    _number("learning_rate", TRAINING, "base.optimizer.learning_rate", note=" of the base"),
    _number("train_batch_size", TRAINING, "base.batch_size",
            help="photos a pass and process, of the base"),
    _both("gradient_accumulation_steps", "gradient_accumulation_steps"),
    _both("gradient_checkpointing", "gradient_checkpointing", kind=bool,
          names=("--gradient-checkpointing",), help="recompute activations to save memory"),
    _both("lr_scheduler", "optimizer.schedule"),
    _both("lr_warmup_steps", "optimizer.warmup_steps"),
    _both("adam_beta1", "optimizer.betas.0", kind=float, help="decay of the mean of gradients"),
    _both("adam_beta2", "optimizer.betas.1", kind=float, help="decay of that of their squares"),
    _both("adam_weight_decay", "optimizer.weight_decay"),
    _both("adam_epsilon", "optimizer.eps"),
    _both("max_grad_norm", "optimizer.max_grad_norm"),
    _both("snr_gamma", "objective.gamma",
          help="weight the noise levels by min-SNR, of this limit; 5 is usual"),
    _both("variance", "objective.variance"),
    _both("mixed_precision", "precision", parser=precision_of,
          metavar=f"[{'|'.join(PRECISIONS)}]"),
    _both("ema_decay", "ema_decay"),
    _both("checkpointing_steps", "checkpoint_every"),
    _both("checkpoints_total_limit", "checkpoints_kept"),
    _both("keep_checkpoints", "keep_checkpoints", names=("--keep-checkpoints",)),
    _number("augmentation", SR, "augmentation"),
    _number("sr_max_train_steps", SR, "super_resolution.steps", note=" of each stage"),
    _number("sr_learning_rate", SR, "super_resolution.optimizer.learning_rate"),
    _number("sr_train_batch_size", SR, "super_resolution.batch_size",
            help="photos a pass and process"),
    _both("validation_steps", "validate_every", panel=REPORT),
    _both("report_to", "trackers", panel=REPORT, kind=str, parser=trackers_of,
          metavar="NAME,NAME|all|none", note=f": {', '.join(get_args(TrackerName))}"),
    _both("logging_dir", "logging_dir", panel=REPORT, parser=values.path, metavar="FOLDER",
          note="; TensorBoard is told then too"),
)  # fmt: skip
"""Flags of the recipe's numbers: what is not given keeps the recipe's own."""

FLAGS: Final = (
    Flag("instance_data_dir", ("instance_data_dir",), parser=values.folder, metavar="FOLDER"),
    Flag("class_noun", ("class_noun",), metavar="NOUN"),
    Flag("output_dir", ("output_dir",), names=values.OUTPUT, parser=values.writable,
         metavar="FOLDER"),
    Flag("cascade", ("cascade",), names=("--cascade", "--pretrained-model-name-or-path"),
         parser=values.cascade, metavar="FOLDER"),
    Flag("identifier", ("identifier",)),
    Flag("instance_prompt", ("instance_prompt",)),
    Flag("stages", ("stages",), kind=str, parser=comma_separated, metavar="NAME,NAME"),
    *TEXT_FLAGS,
    Flag("seed", ("seed", "recipe.base.seed", "recipe.super_resolution.seed")),
    Flag("class_prompt", ("class_prompt",), PRIOR),
    Flag("class_data_dir", ("class_data_dir",), PRIOR, parser=values.writable, metavar="FOLDER"),
    Flag("sr_prompt", ("sr_prompt",), SR),
    Flag("validation_prompt", ("validation_prompts",), REPORT, metavar="TEXT"),
    Flag("num_validation_images", ("validation_images",), REPORT),
    Flag("validation_cascade", ("validation_cascade",), REPORT, names=("--validation-cascade",)),
    *NUMBERS,
)  # fmt: skip
