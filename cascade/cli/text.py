"""The flags by which commands are told where text comes from."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.cli import values
from cascade.config.encoder import EncoderModeName, encoder_mode

Embeddings = Annotated[
    Path | None,
    typer.Option(
        parser=values.folder,
        metavar="FOLDER",
        help="A store made by 'cascade embed', used instead of the text encoder.",
        rich_help_panel="Text",
    ),
]
EncoderMode = Annotated[
    EncoderModeName,
    typer.Option(
        parser=encoder_mode,
        metavar="[auto|float32|bfloat16|int8|layerwise]",
        help="How the text encoder is held: auto takes the most exact that fits into half of the "
        "memory; layerwise reads one block at a time from disk.",
        rich_help_panel="Text",
    ),
]
