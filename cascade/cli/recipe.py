"""From flags to a recipe: which flag replaces which of its numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import typer

from cascade.config.dreambooth import MaskConfig, PriorConfig, Recipe
from cascade.errors import UserError


def _both(path: str) -> tuple[str, str]:
    return f"base.{path}", f"super_resolution.{path}"


PATHS: dict[str, tuple[str, ...]] = {
    "center_crop": ("center_crop",),
    "flip": ("flip",),
    "augmentation": ("augmentation",),
    "prior_loss_weight": ("prior.weight",),
    "num_class_images": ("prior.images",),
    "prior_caption_dropout": ("prior.caption_dropout",),
    "sample_batch_size": ("prior.batch_size", "masks.scenes.batch_size"),
    "sr_prior_preservation": ("prior.super_resolution",),
    "class_scenes": ("prior.in_scenes",),
    "unmasked_weight": ("masks.unmasked_weight",),
    "unmasked_probability": ("masks.unmasked_probability",),
    "scene_share": ("masks.scenes.share",),
    "scene_weight": ("masks.scenes.scene_weight",),
    "num_scene_images": ("masks.scenes.images",),
    "sr_scenes": ("masks.scenes.super_resolution",),
    "max_train_steps": ("base.steps",),
    "learning_rate": ("base.optimizer.learning_rate",),
    "train_batch_size": ("base.batch_size",),
    "sr_max_train_steps": ("super_resolution.steps",),
    "sr_learning_rate": ("super_resolution.optimizer.learning_rate",),
    "sr_train_batch_size": ("super_resolution.batch_size",),
    "gradient_accumulation_steps": _both("gradient_accumulation_steps"),
    "gradient_checkpointing": _both("gradient_checkpointing"),
    "lr_scheduler": _both("optimizer.schedule"),
    "lr_warmup_steps": _both("optimizer.warmup_steps"),
    "adam_weight_decay": _both("optimizer.weight_decay"),
    "adam_epsilon": _both("optimizer.eps"),
    "max_grad_norm": _both("optimizer.max_grad_norm"),
    "snr_gamma": _both("objective.gamma"),
    "variance": _both("objective.variance"),
    "ema_decay": _both("ema_decay"),
    "seed": _both("seed"),
    "checkpointing_steps": _both("checkpoint_every"),
    "checkpoints_total_limit": _both("checkpoints_kept"),
    "keep_checkpoints": _both("keep_checkpoints"),
    "validation_steps": _both("validate_every"),
}
PRECISIONS = {"no": "fp32", "bf16": "bf16", "auto": "auto"}


def recipe_from_flags(start: Recipe, flags: Mapping[str, Any], world: int) -> Recipe:
    """Replace what the given flags name in a recipe.

    Args:
        start: the recipe to begin with.
        flags: those that were given, by their Python names.
        world: number of processes; diffusers' batch size is one process's and one pass's.

    Raises:
        UserError: the values do not go together.
    """
    values = start.model_dump()
    _switch(values, flags)
    for run in (values["base"], values["super_resolution"]):
        run["batch_size"] //= run["gradient_accumulation_steps"]
    for flag, paths in PATHS.items():
        if flag in flags and not [path for path in paths if _set(values, path, flags[flag])]:
            _refuse_idle(flag, paths[0])
    for flag, (path, parsed) in LISTS.items():
        if flag in flags and not _set(values, path, parsed(flags[flag])):
            _refuse_idle(flag, path)
    for run in (values["base"], values["super_resolution"]):
        _set_derived(run, flags)
        if "lr_warmup_steps" not in flags:
            _fit_warmup(run)
        run["batch_size"] *= run["gradient_accumulation_steps"] * world
        if flags.get("scale_lr"):
            run["optimizer"]["learning_rate"] *= run["batch_size"]
    return Recipe.parse(values, "the command's flags", FLAGS)


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts of a flag's value; none of an empty one."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _scenes(text: str) -> list[dict[str, str]]:
    """The scenes of 'on the beach = a beach, in the snow = a snowy landscape'."""
    pairs = (part.partition("=") for part in comma_separated(text))
    return [{"phrase": phrase.strip(), "prompt": prompt.strip()} for phrase, _, prompt in pairs]


def _switch(values: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Switch prior preservation and masks on or off."""
    if flags.get("prior_preservation") is False:
        values["prior"] = None
    elif values["prior"] is None and flags.get("prior_preservation"):
        values["prior"] = PriorConfig().model_dump()
    if flags.get("masks") == "none":
        values["masks"] = None
    elif "masks" in flags:
        values["masks"] = (values["masks"] or MaskConfig().model_dump()) | {
            "source": flags["masks"]
        }


# Flags whose text is a list, with what of the recipe it replaces and what reads it.
LISTS: dict[str, tuple[str, Callable[[str], object]]] = {
    "class_variations": ("prior.variations", comma_separated),
    "scenes": ("scenes", _scenes),
}


# Settings back to the flags that give them, for what is told of a wrong value.
FLAGS: dict[str, str] = {
    path: f"--{flag.replace('_', '-')}"
    for flag, paths in (
        PATHS
        | {flag: (path,) for flag, (path, _) in LISTS.items()}
        | {f"adam_beta{i + 1}": _both(f"optimizer.betas.{i}") for i in range(2)}
    ).items()
    for path in paths
}


def _set_derived(run: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Set what a flag spells differently than the settings do."""
    if "mixed_precision" in flags:
        run["precision"] = PRECISIONS[flags["mixed_precision"]]
    if flags.get("use_8bit_adam"):
        run["optimizer"]["name"] = "adamw8bit"
    if "snr_gamma" in flags:
        run["objective"]["weighting"] = "min_snr"
    beta1, beta2 = run["optimizer"]["betas"]
    run["optimizer"]["betas"] = (flags.get("adam_beta1", beta1), flags.get("adam_beta2", beta2))


def _fit_warmup(run: dict[str, Any]) -> None:
    """Shorten the recipe's own warm-up where a flag has made the run shorter than it."""
    optimizer, steps = run["optimizer"], run["steps"]
    if optimizer["warmup_steps"] >= steps:
        optimizer["warmup_steps"] = steps // 10
        typer.echo(
            f"The recipe's warm-up is longer than {steps} steps; it is {steps // 10} here.",
            err=True,
        )


def _set(values: dict[str, Any], path: str, value: object) -> bool:
    """Set one number; tell whether there is a place for it."""
    *outer, last = path.split(".")
    for name in outer:
        if values[name] is None:
            return False
        values = values[name]
    values[last] = value
    return True


_SWITCHES = {
    "prior": "prior preservation; give --with-prior-preservation",
    "masks": "masks; give --masks auto",
}


def _refuse_idle(flag: str, path: str) -> None:
    spelt = flag.replace("_", "-")
    raise UserError(
        f"--{spelt} needs {_SWITCHES[path.partition('.')[0]]} too, or leave --{spelt} out."
    )
