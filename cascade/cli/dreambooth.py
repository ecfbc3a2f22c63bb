"""`cascade dreambooth`: personalise a cascade.

The flags carry the names and meanings of diffusers' train_dreambooth.py where it has them.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cascade.cli import values
from cascade.cli.mistakes import goes_on
from cascade.cli.recipe import comma_separated, in_recipes, number, part_of, recipe_from_flags
from cascade.cli.telling import DryRun, Quiet
from cascade.cli.text import Embeddings, EncoderMode
from cascade.config.dreambooth import AugmentationName, DreamBoothConfig
from cascade.config.recipes import RECIPES
from cascade.config.stage import RecipeName
from cascade.config.train import LearnedVariance, LrSchedule
from cascade.launch import Launch

PRIOR, MASKS, TRAINING = "Prior preservation", "Masks and scenes", "Training"
SR, REPORT = "Super-resolution", "Validation"


def dreambooth(
    instance_data_dir: Annotated[
        Path,
        typer.Option(
            parser=values.folder,
            metavar="FOLDER",
            help="Folder with 3 to 5 photos of the subject.",
            show_default=False,
        ),
    ],
    class_noun: Annotated[
        str, typer.Option(help="The subject's class: dog, backpack, ...", show_default=False)
    ],
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output-dir",
            "--output",
            "-o",
            parser=values.writable,
            metavar="FOLDER",
            help="Folder that becomes the new cascade.",
            show_default=False,
        ),
    ],
    cascade: Annotated[
        str,
        typer.Option(
            "--cascade",
            "--pretrained-model-name-or-path",
            parser=values.cascade,
            metavar="FOLDER",
            help="The cascade to personalise: a folder, or 'mini'.",
        ),
    ] = "mini",
    identifier: Annotated[
        str | None, typer.Option(help="The rare token [V]; picked from the vocabulary if left out.")
    ] = None,
    instance_prompt: Annotated[
        str, typer.Option(help="Names the subject.")
    ] = "a {identifier} {class_noun}",
    stages: Annotated[
        str | None, typer.Option(help="Which to tune, comma-separated; all if left out.")
    ] = None,
    recipe: Annotated[
        RecipeName | None,
        typer.Option(help="Numbers to start from; the cascade's own if left out."),
    ] = None,
    embeddings: Embeddings = None,
    encoder_mode: EncoderMode = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    center_crop: Annotated[
        bool | None,
        number("center_crop", "How photos are squared.", None, "--center-crop/--random-crop"),
    ] = None,
    flip: Annotated[
        bool | None, number("flip", "Mirror half of the photos' rows.", None, "--flip/--no-flip")
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
    prior_loss_weight: Annotated[
        float | None,
        number("prior_loss_weight", "Weight of the class images' loss, lambda.", PRIOR, min=0),
    ] = None,
    num_class_images: Annotated[
        int | None, number("num_class_images", "How many class images.", PRIOR, min=1)
    ] = None,
    class_prompt: Annotated[
        str | None,
        typer.Option(help="Names the class; 'a {class_noun}' if left out.", rich_help_panel=PRIOR),
    ] = None,
    class_scenes: Annotated[
        bool | None,
        number(
            "class_scenes",
            "Draw the class in the scenes too, by turns with the class alone.",
            PRIOR,
            "--class-scenes/--no-class-scenes",
        ),
    ] = None,
    class_variations: Annotated[
        str | None,
        typer.Option(
            help="Draw the class like this too, by turns with the class alone: "
            "'a cartoon of a {class_noun}, a purple {class_noun}'; '' is not at all.",
            rich_help_panel=PRIOR,
        ),
    ] = None,
    class_data_dir: Annotated[
        Path | None,
        typer.Option(
            parser=values.writable,
            metavar="FOLDER",
            help="Where class images and scenes are kept; pictures of your own in it are class "
            "images too, and only what is missing is drawn.",
            rich_help_panel=PRIOR,
        ),
    ] = None,
    prior_caption_dropout: Annotated[
        float | None,
        number(
            "prior_caption_dropout",
            "Share of class images trained on without their prompt.",
            PRIOR,
            min=0,
            max=1,
        ),
    ] = None,
    sample_batch_size: Annotated[
        int | None,
        number("sample_batch_size", "Class images or scenes drawn at once.", PRIOR, min=1),
    ] = None,
    sr_prior_preservation: Annotated[
        bool | None,
        number(
            "sr_prior_preservation",
            "Preserve the prior of super-resolution stages too.",
            PRIOR,
            "--sr-prior-preservation/--no-sr-prior-preservation",
        ),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="auto|alpha|DIR|none",
            help="Where the subject is in the photos: their alpha channel, mask files in a folder "
            "(white on the subject), or, of each photo, NAME-masklabel.png beside it, its alpha "
            "channel, else found. 'none' is plain DreamBooth.",
            show_default=in_recipes("masks"),
            rich_help_panel=MASKS,
        ),
    ] = None,
    unmasked_weight: Annotated[
        float | None,
        number(
            "unmasked_weight", "How much the background counts in the loss.", MASKS, min=0, max=1
        ),
    ] = None,
    unmasked_probability: Annotated[
        float | None,
        number(
            "unmasked_probability", "Share of photos' rows without their mask.", MASKS, min=0, max=1
        ),
    ] = None,
    scene_share: Annotated[
        float | None,
        number(
            "scene_share",
            "Share of the photos' rows that show the cut-out subject in scenes which the frozen "
            "cascade draws.",
            MASKS,
            min=0,
            max=1,
        ),
    ] = None,
    scene_weight: Annotated[
        float | None,
        number("scene_weight", "How much the scene counts in those rows.", MASKS, min=0, max=1),
    ] = None,
    scenes: Annotated[
        str | None,
        typer.Option(
            help="What is said after the subject or its class, and what draws the place empty: "
            "'on the beach = a beach, in the snow = a snowy landscape'.",
            rich_help_panel=MASKS,
        ),
    ] = None,
    num_scene_images: Annotated[
        int | None, number("num_scene_images", "How many scenes.", MASKS, min=1)
    ] = None,
    sr_scenes: Annotated[
        bool | None,
        number(
            "sr_scenes",
            "Draw scenes for super-resolution stages too.",
            MASKS,
            "--sr-scenes/--no-sr-scenes",
        ),
    ] = None,
    max_train_steps: Annotated[
        int | None, number("max_train_steps", "Optimizer steps of the base.", TRAINING, min=1)
    ] = None,
    learning_rate: Annotated[
        float | None, number("learning_rate", "The base's highest.", TRAINING, min=0)
    ] = None,
    train_batch_size: Annotated[
        int | None,
        number("train_batch_size", "Photos a pass and process, of the base.", TRAINING, min=1),
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None,
        number("gradient_accumulation_steps", "Passes in an optimizer step.", TRAINING, min=1),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        number(
            "gradient_checkpointing",
            "Recompute activations to save memory.",
            TRAINING,
            "--gradient-checkpointing",
        ),
    ] = None,
    scale_lr: Annotated[
        bool | None,
        typer.Option(
            "--scale-lr", help="Multiply the rate by the whole batch.", rich_help_panel=TRAINING
        ),
    ] = None,
    lr_scheduler: Annotated[
        LrSchedule | None,
        number("lr_scheduler", "How the rate falls to 0, if it does.", TRAINING),
    ] = None,
    lr_warmup_steps: Annotated[
        int | None,
        number("lr_warmup_steps", "Steps in which the rate rises from 0.", TRAINING, min=0),
    ] = None,
    use_8bit_adam: Annotated[
        bool | None,
        typer.Option(
            "--use-8bit-adam",
            help="Store AdamW's moments in 8 bits; needs the extra 'quantized'.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    adam_beta1: Annotated[
        float | None, number("adam_beta1", "Decay of the mean of gradients.", TRAINING)
    ] = None,
    adam_beta2: Annotated[
        float | None, number("adam_beta2", "Decay of the mean of their squares.", TRAINING)
    ] = None,
    adam_weight_decay: Annotated[
        float | None,
        number("adam_weight_decay", "Share of the rate by which weights shrink.", TRAINING, min=0),
    ] = None,
    adam_epsilon: Annotated[
        float | None, number("adam_epsilon", "Added to the root of that mean.", TRAINING)
    ] = None,
    max_grad_norm: Annotated[
        float | None, number("max_grad_norm", "Longer gradients are cut to it.", TRAINING)
    ] = None,
    snr_gamma: Annotated[
        float | None,
        typer.Option(help="Min-SNR weighting; 5 is usual.", rich_help_panel=TRAINING),
    ] = None,
    variance: Annotated[
        LearnedVariance | None,
        typer.Option(
            help="A learned variance is trained with the bound, left as it is in the output "
            "layer, or taken out of the stages; trained if left out.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    mixed_precision: Annotated[
        Literal["no", "bf16", "auto"] | None,
        typer.Option(
            help="Of the arithmetic; auto is bf16 on a device that has it.",
            show_default=in_recipes("mixed_precision"),
            rich_help_panel=TRAINING,
        ),
    ] = None,
    ema_decay: Annotated[
        float | None, number("ema_decay", "Publish an average of the weights.", TRAINING)
    ] = None,
    checkpointing_steps: Annotated[
        int | None,
        number("checkpointing_steps", "Save the run's state every so often.", TRAINING, min=1),
    ] = None,
    checkpoints_total_limit: Annotated[
        int | None, number("checkpoints_total_limit", "How many are kept.", TRAINING, min=1)
    ] = None,
    keep_checkpoints: Annotated[
        bool | None,
        number(
            "keep_checkpoints",
            "Keep them when a stage is done: the run can then be made longer.",
            TRAINING,
            "--keep-checkpoints",
        ),
    ] = None,
    augmentation: Annotated[
        AugmentationName | None,
        number(
            "augmentation",
            "Noise on the low-resolution photo: variance 1e-5 (dreambooth), 1e-3 "
            "(dreambooth-reference), or a random level (imagen).",
            SR,
        ),
    ] = None,
    sr_prompt: Annotated[
        str | None,
        typer.Option(
            help="What super-resolution is told of the photos, for instance 'a {class_noun}'; the "
            "instance prompt if left out.",
            rich_help_panel=SR,
        ),
    ] = None,
    sr_max_train_steps: Annotated[
        int | None, number("sr_max_train_steps", "Optimizer steps of each stage.", SR, min=1)
    ] = None,
    sr_learning_rate: Annotated[
        float | None, number("sr_learning_rate", "The highest.", SR, min=0)
    ] = None,
    sr_train_batch_size: Annotated[
        int | None, number("sr_train_batch_size", "Photos a pass and process.", SR, min=1)
    ] = None,
    validation_prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="May be repeated; the instance prompt if left out.", rich_help_panel=REPORT
        ),
    ] = None,
    num_validation_images: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            help="Pictures of each, drawn at the end by all stages; 0 draws none.",
            rich_help_panel=REPORT,
        ),
    ] = 4,
    validation_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draw them every so many steps too, by the stage that is tuned.",
            rich_help_panel=REPORT,
        ),
    ] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Personalise a cascade on 3 to 5 photos: the base, then every super-resolution stage.

    Started again with the same settings it goes on where it was. The result is a complete cascade,
    for 'cascade sample'.
    """
    # Only what was given replaces a number of the recipe: every such flag's default is None.
    flags = {name: value for name, value in locals().items() if value is not None}

    launch = Launch.read()

    from cascade.config.folders import (
        cascade_folder,
        read_manifest,
        read_stage_config,
        stages_named,
    )
    from cascade.dreambooth.personalise import foretell, personalise

    source, chosen = cascade_folder(cascade), comma_separated(stages or "")
    manifest = read_manifest(source)
    tuned = stages_named((read_stage_config(source / name) for name in manifest.stages), chosen)
    numbers = RECIPES[recipe or manifest.recipe]
    changed = recipe_from_flags(numbers, flags, launch.world, [part_of(stage) for stage in tuned])
    config = DreamBoothConfig(
        cascade=cascade,
        instance_data_dir=instance_data_dir,
        output_dir=output_dir,
        class_noun=class_noun,
        identifier=identifier,
        instance_prompt=instance_prompt,
        **({} if class_prompt is None else {"class_prompt": class_prompt}),
        sr_prompt=sr_prompt,
        class_data_dir=class_data_dir,
        embeddings=embeddings,
        encoder_mode=encoder_mode,
        stages=chosen,
        validation_prompts=tuple(validation_prompt or ()),
        validation_images=num_validation_images,
        seed=seed,
        recipe=changed,
    )
    if dry_run:
        foretell(config)
        return
    with goes_on():
        personalise(config)
