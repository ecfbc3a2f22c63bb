"""`cascade dreambooth`: personalise a cascade."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from cascade.cli.console import DryRun, Quiet, resumable
from cascade.cli.dreambooth_flags import FLAGS, PRIOR, TRAINING
from cascade.cli.options import Options, with_options
from cascade.cli.recipe import part_of, recipe_from_flags
from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.folders import cascade_folder, read_manifest, read_stage_config, stages_named
from cascade.config.recipes import RECIPES, recipe_of
from cascade.config.stage import RecipeName
from cascade.launch import Launch


@with_options(DreamBoothConfig, FLAGS)
def dreambooth(
    options: Options[DreamBoothConfig],
    recipe: Annotated[
        RecipeName | None,
        typer.Option(help="Numbers to start from; the cascade's own if left out."),
    ] = None,
    prior_preservation: Annotated[
        bool | None,
        typer.Option(
            "--with-prior-preservation/--no-prior-preservation",
            help="Keep the class by training on images the frozen cascade draws of it; on in "
            "every recipe.",
            rich_help_panel=PRIOR,
        ),
    ] = None,
    scale_lr: Annotated[
        bool | None,
        typer.Option(
            "--scale-lr", help="Multiply the rate by the whole batch.", rich_help_panel=TRAINING
        ),
    ] = None,
    use_8bit_adam: Annotated[
        bool | None,
        typer.Option(
            "--use-8bit-adam",
            help="Store AdamW's moments in 8 bits; needs the extra 'quantized'.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Personalise a cascade on 3 to 5 photos: the base, then every super-resolution stage.

    Started again with the same settings it goes on where it was. The result is a complete cascade,
    for 'cascade sample'.
    """
    switches = {
        "prior_preservation": prior_preservation,
        "scale_lr": scale_lr,
        "use_8bit_adam": use_8bit_adam,
    }
    chosen = {name: value for name, value in switches.items() if value is not None}
    config = settings_from(options, recipe, chosen)

    from cascade.dreambooth.personalise import foretell, personalise

    if dry_run:
        foretell(config)
        return
    with resumable(config.output_dir):
        personalise(config)


def settings_from(
    options: Options[DreamBoothConfig], recipe: RecipeName | None, switches: Mapping[str, Any]
) -> DreamBoothConfig:
    """Return the settings: a recipe, over it the file's, over them the flags, then `--set`.

    A file's `[recipe]` has what differs from its `preset`; the cascade's own if it names none.
    """
    file = options.read_file()
    changes = file.pop("recipe", {})
    found = options.layered(file)
    # Everything but the recipe is checked first, beside one that will do: it says whose recipe.
    others = tuple(one for one in options.overrides if not one.strip().startswith("recipe."))
    plain = replace(options, overrides=others).parse(found | {"recipe": RECIPES["mini"]})
    folder = cascade_folder(plain.cascade)
    stages = (read_stage_config(folder / name) for name in read_manifest(folder).stages)
    tuned = [part_of(one) for one in stages_named(stages, plain.stages)]
    if recipe is not None:
        changes = {**(changes if isinstance(changes, Mapping) else {}), "preset": recipe}
    start = recipe_of(folder, changes, options.source)
    flags = {**options.values, **switches}
    changed = recipe_from_flags(start, flags, Launch.read().world_size, tuned)
    return options.parse(found | {"recipe": changed.model_dump()})
