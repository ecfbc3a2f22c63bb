"""`cascade embed`: the embeddings of captions, computed once and kept on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.telling import Quiet
from cascade.cli.text import EncoderMode
from cascade.config.stage import Cleaning, TextConfig
from cascade.errors import UserError
from cascade.launch import Launch

CONVENTIONS = "Conventions, with --encoder; a cascade has its own"


def embed(
    output: Annotated[
        Path,
        values.output("Folder of the store."),
    ],
    encoder: Annotated[
        Path | None,
        typer.Option(
            parser=values.folder,
            metavar="FOLDER",
            help="Folder of a T5 encoder.",
            show_default=False,
        ),
    ] = None,
    cascade: Annotated[
        str | None,
        typer.Option(
            parser=values.cascade,
            metavar="FOLDER",
            help="A cascade, for its encoder and conventions, instead.",
            show_default=False,
        ),
    ] = None,
    captions: Annotated[
        list[Path] | None,
        typer.Option(
            parser=values.existing,
            metavar="FILE|FOLDER",
            help="A text file, a caption per line; a .jsonl file; or a folder with captions.jsonl. "
            "May be repeated.",
            show_default=False,
        ),
    ] = None,
    caption: Annotated[
        list[str] | None, typer.Option(help="One caption; may be repeated.", show_default=False)
    ] = None,
    cleaning: Annotated[
        Cleaning | None,
        typer.Option(help="What is done to captions first.", rich_help_panel=CONVENTIONS),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens kept.", rich_help_panel=CONVENTIONS)
    ] = None,
    masked: Annotated[
        bool | None,
        typer.Option(
            "--masked/--unmasked",
            help="Whether the network sees no padding; DeepFloyd IF sees it.",
            rich_help_panel=CONVENTIONS,
        ),
    ] = None,
    encoder_mode: EncoderMode = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Captions embedded at once.")] = 32,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do the I-th of N shares of the captions; torchrun's own by default.",
            show_default=False,
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Size of the store's files, MiB.")] = 256,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Embed captions into a store that training, DreamBooth and sampling read.

    Captions that are there already are skipped, so the same command goes on after an interruption.
    With layerwise, a large --batch-size makes up for reading the encoder once per batch. On several
    GPUs: torchrun --nproc-per-node N -m cascade embed ...
    """
    from itertools import chain

    from cascade.environment import usable_device
    from cascade.text.captions import read_captions
    from cascade.text.embed import Share, fill

    if not captions and not caption:
        raise UserError("There is nothing to embed; give --captions or --caption.")
    given = {"cleaning": cleaning, "max_length": max_length, "masked": masked}
    changes = {name: value for name, value in given.items() if value is not None}
    source, text = _encoder_and_conventions(encoder, cascade, changes)
    launch = Launch.read()
    where = usable_device(device)
    fill(
        output,
        source,
        chain(caption or (), *map(read_captions, captions or ())),
        text=text,
        mode=encoder_mode,
        device=f"cuda:{launch.local_rank}" if where == "cuda" and launch.world > 1 else where,
        batch_size=batch_size,
        share=Share.parse(shard) if shard else Share.of_process(),
        shard_bytes=shard_size << 20,
    )


def _encoder_and_conventions(
    encoder: Path | None, cascade: str | None, changes: Mapping[str, object]
) -> tuple[Path, TextConfig]:
    from cascade.config.folders import cascade_folder, read_manifest, read_stage_config

    if encoder is not None and cascade is None:
        return encoder, TextConfig.parse(changes, "the command's flags")
    if cascade is None or encoder is not None:
        raise UserError("The encoder comes from a folder or from a cascade; give one of the two.")
    if changes:
        raise UserError("A cascade has its own conventions; leave out the flags that set them.")
    folder = cascade_folder(cascade)
    manifest = read_manifest(folder)
    stage = read_stage_config(folder / manifest.stages[0])
    return folder / manifest.text_encoder, stage.text
