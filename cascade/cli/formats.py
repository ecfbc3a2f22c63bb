"""`cascade import` and `cascade export-diffusers`: DeepFloyd IF's folders, in and out."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.shared import CopyTextEncoder


def import_cascade(
    sources: Annotated[
        list[Path],
        typer.Option(
            "--from",
            parser=values.folder,
            metavar="FOLDER",
            help="A stage's downloaded folder; repeat for each stage.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, values.output("Gets the cascade.")],
    variant: Annotated[
        str | None,
        typer.Option(
            parser=values.name,
            metavar="NAME",
            help="Of the weight files: fp16, ...; the plain ones if left out.",
        ),
    ] = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(
            parser=values.folder,
            metavar="FOLDER",
            help="The text encoder's, where no stage's folder has it (diffusers leaves it out with "
            "--skip_save_text_encoder).",
            show_default="that of a stage's folder",
        ),
    ] = None,
    copy_text_encoder: CopyTextEncoder = False,
) -> None:
    """Make a cascade of DeepFloyd IF's stages, as diffusers lays them out.

    The weights keep their type and are never held in memory as a whole.
    """
    from cascade.formats.deepfloyd import read_pipelines
    from cascade.formats.importing import import_cascade as write
    from cascade.pipeline import print_licence
    from cascade.progress import progress_bar, stage_steps

    found = read_pipelines(sources, text_encoder)
    print_licence(found.manifest)
    with progress_bar() as bar:
        folder = write(
            found,
            output,
            variant=variant,
            copy_text_encoder=copy_text_encoder,
            on_tensor=stage_steps(bar),
        )
    typer.echo(f"The cascade is in {folder}; its stages are {', '.join(found.manifest.stages)}.")
    if not Path(found.manifest.text_encoder).is_dir():
        typer.echo(
            f"There is no {found.manifest.text_encoder}: use the cascade with --embeddings, or "
            "make it again with --text-encoder, the text_encoder folder of the original checkpoint."
        )


def export_diffusers(
    cascade: Annotated[
        str,
        typer.Option(
            parser=values.cascade, metavar="FOLDER", help="A cascade folder.", show_default=False
        ),
    ],
    output: Annotated[Path, values.output("Gets one folder per stage.")],
    text_encoder: Annotated[
        bool, typer.Option(help="Copy the text encoder into the base's folder.")
    ] = True,
) -> None:
    """Write a cascade of DeepFloyd IF's kind as folders that diffusers loads.

    The base loads as IFPipeline, super-resolution as IFSuperResolutionPipeline. Each folder's
    README.md says what to call the pipeline with.
    """
    from cascade.config.folders import cascade_folder, read_manifest
    from cascade.formats.export import export_cascade
    from cascade.pipeline import print_licence
    from cascade.progress import progress_bar, stage_steps

    source = cascade_folder(cascade)
    manifest = read_manifest(source)
    print_licence(manifest)
    with progress_bar() as bar:
        folders = export_cascade(
            source, manifest, output, text_encoder=text_encoder, on_tensor=stage_steps(bar)
        )
    for folder in folders:
        typer.echo(f"{folder}")
