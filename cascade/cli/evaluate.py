"""`cascade evaluate`: how good a personalised cascade, or one stage, is."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.console import Quiet, resumable
from cascade.cli.options import Flag, Options, with_options
from cascade.cli.shared import GUIDANCE_INTERVAL
from cascade.config.dreambooth import MaskConfig
from cascade.config.evaluate import StageScoreConfig, SubjectScoreConfig

evaluate = typer.Typer(help="Score a personalised cascade, or a stage.", no_args_is_help=True)
DRAWING = tuple(Flag(name, (name,)) for name in ("seed", "precision", "batch_size"))
OF_STAGE = (
    *(Flag(name, (name,)) for name in ("images", "side", "fid", "sampler", "steps", "guidance")),
    GUIDANCE_INTERVAL,
)

Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")]


@evaluate.command()
@with_options(
    SubjectScoreConfig, [*DRAWING, *(Flag(name, (name,)) for name in ("images", "elsewhere"))]
)
def subject(
    options: Options[SubjectScoreConfig],
    cascades: Annotated[
        list[str],
        typer.Argument(parser=values.cascade, metavar="CASCADE...", help="Tuned on the subject."),
    ],
    photos: Annotated[
        Path,
        typer.Option(parser=values.folder, metavar="FOLDER", help="The subject's photos."),
    ],
    before: Annotated[
        str, typer.Option(parser=values.cascade, metavar="CASCADE", help="What was tuned.")
    ] = "mini",
    held_out: Annotated[
        Path | None,
        typer.Option(
            parser=values.existing,
            metavar="PHOTO",
            help="A photo kept out of the tuning, which super-resolution is to give back.",
        ),
    ] = None,
    masks: Annotated[
        str,
        typer.Option(
            metavar="auto|alpha|DIR|none",
            help="Where the subject is in the photos, as for 'cascade dreambooth'; 'none' leaves "
            "likeness out.",
        ),
    ] = "auto",
    device: Device = None,
    output: Annotated[
        Path, values.output("Gets subject.json, .md, .html and sheets of pictures.")
    ] = Path("runs/evaluate"),
    quiet: Quiet = False,
) -> None:
    """Score cascades that were tuned on a subject: likeness, the class kept, prompts followed.

    Every cascade and the one before draw the same prompts with the same seeds.
    """
    config = options.settings()
    from cascade.data.images import read_image, read_photos
    from cascade.dreambooth.masks import read_masks
    from cascade.evaluate.scoring import score_subject
    from cascade.evaluate.subject import Photos

    taken = read_photos(photos)
    # As the setting reads it: a word, or a folder.
    source = None if masks == "none" else MaskConfig.parse({"source": masks}, "--masks").source
    shown = Photos(
        images=taken.images,
        masks=[] if source is None else [mask.image for mask in read_masks(taken, source)],
        held_out=None if held_out is None else read_image(held_out),
    )
    with resumable():
        result, tables = score_subject(cascades, before, shown, config, device, output)
    typer.echo(result.markdown(tables))
    typer.echo(f"The page is {output / 'subject.html'}.")


@evaluate.command()
@with_options(StageScoreConfig, [*DRAWING, *OF_STAGE])
def stage(
    options: Options[StageScoreConfig],
    cascade: Annotated[
        str, typer.Argument(parser=values.cascade, metavar="CASCADE", help="Or 'mini'.")
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            parser=values.name,
            metavar="PLACE",
            help="True pictures with captions, as 'cascade train' reads them; of a pack those that "
            "it holds out, if it does.",
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            parser=values.folder,
            metavar="FOLDER",
            help="Photos for super-resolution to give back, in place of a dataset.",
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What super-resolution is told of photos.")] = (
        "a photo"
    ),
    name: Annotated[
        str | None,
        typer.Option("--stage", parser=values.name, metavar="NAME", help="Which; the first."),
    ] = None,
    device: Device = None,
    output: Annotated[
        Path, values.output("Gets STAGE.json, .md, a sheet, and what is drawn meanwhile.")
    ] = Path("runs/evaluate"),
    quiet: Quiet = False,
) -> None:
    """Score a stage: a base's FID and the judge's view of it, or super-resolution beside bicubic.

    What is drawn is kept: the same command goes on where it was stopped.
    """
    config = options.settings()
    from cascade.evaluate.scoring import score_stage
    from cascade.evaluate.true import TruePictures

    true = TruePictures(dataset, photos, prompt)
    with resumable():
        result, table = score_stage(cascade, name, true, config, device, output)
    typer.echo(result.markdown([table]))


@evaluate.command()
def mean(
    records: Annotated[
        list[Path],
        typer.Argument(parser=values.existing, metavar="RECORD...", help="Files of one kind."),
    ],
) -> None:
    """Print the means over several records of one kind, and their standard deviations."""
    from cascade.results import Result, means

    for table in means([Result.load(path) for path in records]):
        typer.echo(table.markdown())
