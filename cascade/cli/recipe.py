"""From flags to a recipe: which flag replaces which of its numbers."""

from collections.abc import Collection, Mapping
from typing import Any, Final

import typer

from cascade.cli.dreambooth_flags import BASE, FLAGS, SUPER_RESOLUTION, as_flags
from cascade.cli.options import set_at
from cascade.config.dreambooth import MaskConfig, PriorConfig, Recipe
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.launch import Launch

_WITHIN: Final = "recipe."
_NO: Final = (None, False, 0, (), "none")
PATHS: Final[Mapping[str, tuple[str, ...]]] = {
    flag.name: tuple(p.removeprefix(_WITHIN) for p in flag.paths if p.startswith(_WITHIN))
    for flag in FLAGS
    if any(path.startswith(_WITHIN) for path in flag.paths)
}
"""The numbers of the recipe that each flag replaces."""

# Flags that replace no number of the recipe, with the parts of the run that use them.
USED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "class_prompt": ("prior.",),
    "class_data_dir": ("prior.", "masks.scenes."),
    "sr_prompt": ("super_resolution.",),
}
_SPELT: Final = {path: flag.spelt for flag in FLAGS for path in PATHS.get(flag.name, ())}


def part_of(stage: StageConfig) -> str:
    """By which part of a recipe a stage is tuned."""
    return BASE if stage.low_res is None else SUPER_RESOLUTION


def recipe_from_flags(
    start: Recipe,
    flags: Mapping[str, Any],
    world: int,
    tuned: Collection[str] = (BASE, SUPER_RESOLUTION),
) -> Recipe:
    """Replace what the given flags name in a recipe.

    Args:
        world: number of processes; diffusers' batch size is one process's and one pass's.
    """
    values = as_flags(start)
    _switch(values, flags)
    for flag, paths in PATHS.items():
        for path in paths if flag in flags else ():
            set_at(values, path, flags[flag])
    for run in (values["base"], values["super_resolution"]):
        _set_derived(run, flags)
        if "lr_warmup_steps" not in flags:
            _fit_warmup(run)
        run["batch_size"] *= run["gradient_accumulation_steps"] * world
        if flags.get("scale_lr"):
            run["optimizer"]["learning_rate"] *= run["batch_size"]
    recipe = Recipe.parse(values, "the command's flags", _SPELT)
    _refuse_idle(flags, recipe, tuned)
    for part in dict.fromkeys(tuned) if "ema_decay" in flags else ():
        if (note := getattr(recipe, part).ema_note) is not None:
            _note(f"--ema-decay: {note}")
    return recipe


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


def _set_derived(run: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Set what a flag says besides."""
    if flags.get("use_8bit_adam"):
        run["optimizer"]["name"] = "adamw8bit"
    if "snr_gamma" in flags:
        run["objective"]["weighting"] = "min_snr"
    if "logging_dir" in flags and "report_to" not in flags:
        run["trackers"] = ("tensorboard",)  # diffusers' own, which needs no flag there


def _fit_warmup(run: dict[str, Any]) -> None:
    """Shorten the recipe's own warm-up where a flag has made the run shorter than it."""
    optimizer, steps = run["optimizer"], run["steps"]
    if optimizer["warmup_steps"] >= steps:
        optimizer["warmup_steps"] = steps // 10
        _note(f"The recipe's warm-up is longer than {steps} steps; it is {steps // 10} here.")


def _note(sentence: str) -> None:
    """Say on the error stream what is not as it was asked for; one process of a run does."""
    if Launch.read().is_main:
        typer.echo(sentence, err=True)


def _refuse_idle(flags: Mapping[str, Any], recipe: Recipe, tuned: Collection[str]) -> None:
    """Refuse a flag if nothing that is done uses it; one that says no, or 0, asks for nothing."""
    idle = _idle(recipe, tuned)
    for flag, paths in {**PATHS, **USED_BY}.items():
        needed = [
            next((needs for part, needs in idle.items() if path.startswith(part)), None)
            for path in paths
        ]
        if flags.get(flag) not in _NO and None not in needed:
            spelt = f"--{flag.replace('_', '-')}"
            raise UserError(f"{spelt} needs {needed[0]} too, or leave {spelt} out.")


def _idle(recipe: Recipe, tuned: Collection[str]) -> dict[str, str]:
    """Return the parts of a recipe that are not used, and what each would need."""
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
