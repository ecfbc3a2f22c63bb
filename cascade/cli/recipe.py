"""From flags to a recipe: which flag replaces which of its numbers."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import typer

from cascade.config.dreambooth import MaskConfig, PriorConfig, Recipe
from cascade.config.recipes import RECIPES
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.launch import Launch


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
# Flags that replace no number of the recipe, with the parts of the run that use them.
USED_BY: dict[str, tuple[str, ...]] = {
    "class_prompt": ("prior.",),
    "class_data_dir": ("prior.", "masks.scenes."),
    "sr_prompt": ("super_resolution.",),
}
BASE, SUPER_RESOLUTION = "base", "super_resolution"
PRECISIONS = {"no": "fp32", "bf16": "bf16", "auto": "auto"}


def part_of(stage: StageConfig) -> str:
    """By which part of a recipe a stage is tuned."""
    return BASE if stage.low_res is None else SUPER_RESOLUTION


def number(flag: str, told: str, panel: str, *names: str, **options: Any) -> Any:
    """A flag that replaces a number of the recipe; its help tells what the recipes have.

    Args:
        flag: its Python name.
        told: its help.
        panel: of the help.
        names: its spellings, if they are others than its Python name.
        options: others of `typer.Option`.
    """
    return typer.Option(
        *names, help=told, rich_help_panel=panel, show_default=in_recipes(flag), **options
    )


def in_recipes(flag: str) -> str:
    """What a flag replaces in each recipe: 'paper 1000, mini 375, deepfloyd 150'."""
    each = {name: _told_of(recipe, flag) for name, recipe in RECIPES.items()}
    alike = set(each.values())
    if len(alike) == 1:
        return alike.pop()
    return ", ".join(f"{name} {value}" for name, value in each.items())


def _told_of(recipe: Recipe, flag: str) -> str:
    """A recipe's number in words; that of super-resolution too where the flag replaces both."""
    values = _as_flags(recipe)
    told = [_word(_get(values, path)) for path in SETTINGS[flag] if _has(values, path)]
    return " and ".join(dict.fromkeys(told)) or "none"


def _as_flags(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values with batches as diffusers counts them: those of one pass."""
    values = recipe.model_dump()
    for run in (values["base"], values["super_resolution"]):
        run["batch_size"] //= run["gradient_accumulation_steps"]
    return values


def _word(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return next((flag for flag, setting in PRECISIONS.items() if setting == value), str(value))


def _has(values: Mapping[str, Any], path: str) -> bool:
    """Whether a recipe has a place for a number: not where the part that holds it is off."""
    outer, _, _ = path.rpartition(".")
    return not outer or _get(values, outer) is not None


def _get(values: Mapping[str, Any], path: str) -> Any:
    """One number of a recipe; None where there is no place for it."""
    found: Any = values
    for name in path.split("."):
        found = None if found is None else found[int(name) if name.isdigit() else name]
    return found


def recipe_from_flags(
    start: Recipe,
    flags: Mapping[str, Any],
    world: int,
    tuned: Collection[str] = (BASE, SUPER_RESOLUTION),
) -> Recipe:
    """Replace what the given flags name in a recipe.

    Args:
        start: the recipe to begin with.
        flags: those that were given, by their Python names.
        world: number of processes; diffusers' batch size is one process's and one pass's.
        tuned: the parts of the recipe that stages are tuned by.

    Raises:
        UserError: the values do not go together, or a flag has no effect.
    """
    values = _as_flags(start)
    _switch(values, flags)
    for flag, paths in PATHS.items():
        for path in paths if flag in flags else ():
            _set(values, path, flags[flag])
    for flag, (path, parsed) in LISTS.items():
        if flag in flags:
            _set(values, path, parsed(flags[flag]))
    for run in (values["base"], values["super_resolution"]):
        _set_derived(run, flags)
        if "lr_warmup_steps" not in flags:
            _fit_warmup(run)
        run["batch_size"] *= run["gradient_accumulation_steps"] * world
        if flags.get("scale_lr"):
            run["optimizer"]["learning_rate"] *= run["batch_size"]
    recipe = Recipe.parse(values, "the command's flags", FLAGS)
    _refuse_idle(flags, recipe, tuned)
    for part in dict.fromkeys(tuned) if "ema_decay" in flags else ():
        if (note := getattr(recipe, part).ema_note) is not None:
            _note(f"--ema-decay: {note}")
    return recipe


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
# Every flag with the settings that it replaces, for its help and for what is told of a wrong value.
SETTINGS: dict[str, tuple[str, ...]] = (
    PATHS
    | {flag: (path,) for flag, (path, _) in LISTS.items()}
    | {f"adam_beta{i + 1}": _both(f"optimizer.betas.{i}") for i in range(2)}
    | {"mixed_precision": _both("precision"), "masks": ("masks.source",)}
)
FLAGS: dict[str, str] = {
    path: f"--{flag.replace('_', '-')}" for flag, paths in SETTINGS.items() for path in paths
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
        _note(f"The recipe's warm-up is longer than {steps} steps; it is {steps // 10} here.")


def _note(sentence: str) -> None:
    """Say on the error stream what is not as it was asked for; one process of a run does."""
    if Launch.read().first:
        typer.echo(sentence, err=True)


def _set(values: dict[str, Any], path: str, value: object) -> None:
    """Set one number, where there is a place for it."""
    *outer, last = path.split(".")
    for name in outer:
        if values[name] is None:
            return
        values = values[name]
    values[last] = value


def _refuse_idle(flags: Mapping[str, Any], recipe: Recipe, tuned: Collection[str]) -> None:
    """Refuse a flag if nothing that is done uses it; one that says no, or 0, asks for nothing."""
    idle = _idle(recipe, tuned)
    lists = {flag: (path,) for flag, (path, _) in LISTS.items()}
    for flag, paths in (PATHS | lists | USED_BY).items():
        needed = [
            next((needs for part, needs in idle.items() if path.startswith(part)), None)
            for path in paths
        ]
        if flags.get(flag) and None not in needed:
            spelt = f"--{flag.replace('_', '-')}"
            raise UserError(f"{spelt} needs {needed[0]} too, or leave {spelt} out.")


def _idle(recipe: Recipe, tuned: Collection[str]) -> dict[str, str]:
    """The parts of a recipe that are not used, and what each would need."""
    prior, masks, rows = recipe.prior, recipe.masks, recipe.scene_rows
    idle = {}
    if BASE not in tuned:
        idle["base."] = "the base to be tuned; name it in --stages"
    if SUPER_RESOLUTION not in tuned:
        alone = ("prior.super_resolution", "masks.scenes.super_resolution", "augmentation")
        for part in ("super_resolution.", *alone):
            idle[part] = "a super-resolution stage to be tuned; name one in --stages"
    if prior is None:
        idle["prior."] = "prior preservation; give --with-prior-preservation"
    elif BASE not in tuned and not prior.super_resolution:
        idle["prior."] = "the prior of what is tuned to be preserved; give --sr-prior-preservation"
    if masks is None:
        idle["masks."] = "masks; give --masks auto"
    elif rows is None:
        idle["masks.scenes."] = "the subject in scenes; give a --scene-share"
    elif BASE not in tuned and not rows.super_resolution:
        idle["masks.scenes."] = "scenes for what is tuned; give --sr-scenes"
    without = "prior." in idle or prior is None or not prior.in_scenes
    if without and (rows is None or "masks.scenes." in idle):
        idle["scenes"] = "the class or the subject in scenes; give --class-scenes or --scene-share"
    return idle
