"""The flags that say how a bundle's engines run, and opening a bundle by them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cascade.cli import values
from cascade.config.base import MOST_THREADS
from cascade.config.encoder import EncoderModeName
from cascade.errors import UserError

if TYPE_CHECKING:
    from cascade.pipeline import Cascade

_PANEL = "Bundles"
EngineName = Literal["torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]

Bundle = Annotated[
    Path | None,
    typer.Option(
        parser=values.folder,
        metavar="FOLDER",
        help="A folder made by 'cascade export', in place of a cascade.",
        rich_help_panel=_PANEL,
    ),
]
BundleArgument = Annotated[
    Path | None,
    typer.Argument(parser=values.folder, metavar="BUNDLE", help="An exported cascade."),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", parser=values.folder, metavar="FOLDER", help="The same as BUNDLE."),
]
Subject = Annotated[
    str | None,
    typer.Option(
        parser=values.name,
        metavar="NAME",
        help="One of the bundle's fine-tunes.",
        rich_help_panel=_PANEL,
    ),
]
Engine = Annotated[
    EngineName | None,
    typer.Option(help="Run its graphs on another engine than its own.", rich_help_panel=_PANEL),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_THREADS, help="Of an engine on the CPU.", rich_help_panel=_PANEL),
]
Spinning = Annotated[
    bool,
    typer.Option(
        "--spinning/--no-spinning",
        help="Whether ONNX Runtime's idle threads wait busily.",
        rich_help_panel=_PANEL,
    ),
]
Compiled = Annotated[
    bool,
    typer.Option("--compile", help="Compile the networks of engine torch.", rich_help_panel=_PANEL),
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="MB for the stages' weights; those of stages that wait leave, batch by batch.",
        rich_help_panel=_PANEL,
    ),
]


def load_bundle(
    folder: Path,
    device: str | None,
    *,
    subject: str | None,
    engine: EngineName | None,
    threads: int | None,
    spinning: bool,
    compiled: bool,
    max_memory: int | None,
    embeddings: Path | None,
    encoder_mode: EncoderModeName,
) -> "Cascade":
    """Open a bundle by the flags above, as a cascade.

    Raises:
        UserError: the bundle is none, or an engine cannot run so.
    """
    from cascade.config.engine import EngineOptions
    from cascade_export.bundle.bundle import Bundle as Exported
    from cascade_export.engines import engine_class

    bundle = Exported.open(folder)
    return bundle.cascade(
        subject,
        device or engine_class(engine or bundle.manifest.engine).default_device(),
        engine=engine,
        options=EngineOptions(threads=threads, spinning=spinning, compiled=compiled),
        max_memory=None if max_memory is None else max_memory * 10**6,
        embeddings=embeddings,
        encoder_mode=encoder_mode,
    )


def refuse_without_bundle(**given: object) -> None:
    """Refuse flags that only a bundle has a use for.

    Raises:
        UserError: one is given.
    """
    for flag, value in given.items():
        if value:
            raise UserError(f"--{flag.replace('_', '-')} belongs to a bundle; give --bundle too.")
