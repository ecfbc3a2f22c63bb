"""The flags by which commands are told where text comes from."""

from pathlib import Path
from typing import Annotated, Final, get_args

import typer

from cascade.cli import values
from cascade.cli.options import Flag, told
from cascade.config.encoder import EncoderModeName, encoder_mode
from cascade.config.sample import SampleConfig

_PANEL: Final = "Text"
_MODES: Final = f"[{'|'.join(get_args(EncoderModeName))}]"

EMBEDDINGS: Final = Flag(
    "embeddings", ("embeddings",), _PANEL, parser=values.folder, metavar="FOLDER"
)
ENCODER_MODE: Final = Flag(
    "encoder_mode", ("encoder_mode",), _PANEL, parser=encoder_mode, metavar=_MODES
)
TEXT_FLAGS: Final = (EMBEDDINGS, ENCODER_MODE)

Embeddings = Annotated[
    Path | None,
    typer.Option(
        parser=values.folder,
        metavar="FOLDER",
        help=told(SampleConfig, EMBEDDINGS),
        rich_help_panel=_PANEL,
    ),
]
EncoderMode = Annotated[
    EncoderModeName,
    typer.Option(
        parser=encoder_mode,
        metavar=_MODES,
        help=told(SampleConfig, ENCODER_MODE),
        rich_help_panel=_PANEL,
    ),
]
CopyTextEncoder = Annotated[
    bool,
    typer.Option(
        "--copy-text-encoder/--refer-to-text-encoder",
        help="Copy the encoder too (T5-XXL: up to 19 GB), or use it where it is.",
    ),
]
