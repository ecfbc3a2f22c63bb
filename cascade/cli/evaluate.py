"""`cascade evaluate`: how good a personalised cascade, or one stage, is."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.mistakes import goes_on
from cascade.cli.telling import Quiet
from cascade.config.dreambooth import MaskConfig
from cascade.config.evaluate import StageScoreConfig, SubjectScoreConfig
from cascade.config.stage import Precision, SamplerName

evaluate = typer.Typer(help="Score a personalised cascade, or a stage.", no_args_is_help=True)
SUBJECT, STAGE = SubjectScoreConfig(), StageScoreConfig()

Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")]


@evaluate.command()
def subject(
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
    images: Annotated[int, typer.Option(min=2, max=1000, help="Of each prompt.")] = SUBJECT.images,
    elsewhere: Annotated[
        int, typer.Option(min=0, max=100, help="Of each prompt in new places, styles, colours.")
    ] = SUBJECT.elsewhere,
    seed: Annotated[int, typer.Option(help="Of the first picture; they count.")] = SUBJECT.seed,
    precision: Annotated[Precision, typer.Option(help="Of the networks.")] = SUBJECT.precision,
    batch_size: Annotated[
        int, typer.Option(min=1, max=1024, help="Pictures worked on at once.")
    ] = SUBJECT.batch_size,
    device: Device = None,
    output: Annotated[
        Path, values.output("Gets subject.json, .md, .html and sheets of pictures.")
    ] = Path("runs/evaluate"),
    quiet: Quiet = False,
) -> None:
    """Score cascades that were tuned on a subject: likeness, the class kept, prompts followed.

    Every cascade and the one before draw the same prompts with the same seeds.
    """
    config = SubjectScoreConfig(
        images=images, elsewhere=elsewhere, seed=seed, precision=precision, batch_size=batch_size
    )
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
    with goes_on():
        result, tables = score_subject(cascades, before, shown, config, device, output)
    typer.echo(result.markdown(tables))
    typer.echo(f"The page is {output / 'subject.html'}.")


@evaluate.command()
def stage(
    cascade: Annotated[
        str, typer.Argument(parser=values.cascade, metavar="CASCADE", help="Or 'mini'.")
    ],
    dataset: Annotated[
        Path | None,
        typer.Option(
            parser=values.folder,
            metavar="FOLDER",
            help="True pictures with captions, as 'cascade train' reads them.",
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
    side: Annotated[
        int | None, typer.Option(min=1, help="Pixels to enlarge to; the stage's if left out.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Pictures, at most.")] = STAGE.images,
    fid: Annotated[bool, typer.Option("--fid/--no-fid", help="Measure a base's FID.")] = STAGE.fid,
    sampler: Annotated[SamplerName | None, typer.Option(help="Replace the checkpoint's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="The same.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="The same.")] = None,
    precision: Annotated[Precision, typer.Option(help="Of the networks.")] = STAGE.precision,
    batch_size: Annotated[
        int, typer.Option(min=1, max=1024, help="Pictures worked on at once.")
    ] = STAGE.batch_size,
    seed: Annotated[int, typer.Option(help="Of the first picture; they count.")] = STAGE.seed,
    device: Device = None,
    output: Annotated[
        Path, values.output("Gets STAGE.json, .md, a sheet, and what is drawn meanwhile.")
    ] = Path("runs/evaluate"),
    quiet: Quiet = False,
) -> None:
    """Score a stage: a base's FID and the judge's view of it, or super-resolution beside bicubic.

    What is drawn is kept: the same command goes on where it was stopped.
    """
    config = StageScoreConfig(
        images=images,
        side=side,
        fid=fid,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
    )
    from cascade.evaluate.scoring import score_stage
    from cascade.evaluate.true import TruePictures

    true = TruePictures(dataset, photos, prompt)
    with goes_on():
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
