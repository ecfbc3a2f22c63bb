"""`cascade assemble`: a cascade of trained stages."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.shared import CopyTextEncoder
from cascade.config.stage import RecipeName
from cascade.errors import UserError


def assemble(
    stages: Annotated[
        list[Path],
        typer.Argument(
            parser=values.folder, metavar="STAGE", help="Folders of stages, base first."
        ),
    ],
    output: Annotated[Path, values.output("A new folder: the cascade.")],
    text_encoder: Annotated[
        Path | None,
        typer.Option(
            parser=values.folder,
            metavar="FOLDER",
            help="The encoder that the stages were trained with; without one, prompts come from "
            "a store ('cascade embed').",
        ),
    ] = None,
    copy_text_encoder: CopyTextEncoder = True,
    name: Annotated[
        str | None,
        typer.Option(parser=values.name, metavar="NAME", help="The cascade's; else its folder's."),
    ] = None,
    recipe: Annotated[
        RecipeName, typer.Option(help="The preset with which 'cascade dreambooth' begins.")
    ] = "paper",
    licence: Annotated[
        str | None,
        typer.Option(
            parser=values.name, metavar="TEXT", help="Of the weights; else what the stages state."
        ),
    ] = None,
    half: Annotated[
        bool,
        typer.Option("--half", help="Store the weights in bfloat16; they are used in float32."),
    ] = False,
) -> None:
    """Put trained stages and their text encoder together into a cascade."""
    if text_encoder is None and not copy_text_encoder:
        raise UserError(
            "--refer-to-text-encoder needs --text-encoder too; give the encoder's folder."
        )

    import torch

    from cascade.assembling import assemble as put_together

    manifest = put_together(
        stages,
        output,
        text_encoder=text_encoder,
        copy_text_encoder=copy_text_encoder,
        name=name,
        recipe=recipe,
        licence=licence,
        dtype=torch.bfloat16 if half else torch.float32,
    )
    typer.echo(f"The cascade is in {output}; its stages are {', '.join(manifest.stages)}.")
    typer.echo(f"Draw: cascade sample --cascade {quote(str(output))} --prompt PROMPT")
