"""`cascade train`: one stage from scratch."""

import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.console import DryRun, Quiet, Status, resumable
from cascade.cli.options import Options, with_options
from cascade.config.train import PretrainConfig
from cascade.launch import Launch
from cascade.progress import say, spell


@with_options(PretrainConfig, ())
def train(
    options: Options[PretrainConfig],
    path: Annotated[
        Path | None,
        typer.Argument(
            parser=values.path, metavar="CONFIG", help="A TOML file; see configs/ for examples."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Stop after the first step past so many minutes, with a checkpoint and exit "
            f"status {Status.TIME_IS_UP}; no part of the run's settings.",
        ),
    ] = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train one stage from scratch, or on from a stage's weights.

    Started again with the same settings it goes on from its last checkpoint. On several GPUs:
    torchrun --nproc-per-node N -m cascade train CONFIG.
    """
    # Before torch is imported: a mistake in the settings is answered at once.
    settings = replace(options, file=values.either(path, options.file, "config")).settings()

    from cascade.training.pretrain import foretell, pretrain

    first, start = Launch.read().is_main, time.monotonic()
    if first and settings.train.ema_note is not None:
        typer.echo(f"train.ema_decay: {settings.train.ema_note}", err=True)
    if dry_run:
        foretell(settings)
        return
    with resumable(settings.output):
        folder = pretrain(settings, minutes)
    if first:
        encoder = settings.text_encoder
        text = f" --text-encoder {quote(str(encoder))}" if encoder else ""
        say(f"The trained stage is in {folder}, after {spell(time.monotonic() - start)}.")
        say(
            f"Make a cascade of stages: cascade assemble {quote(str(folder))}{text} "
            "--output CASCADE"
        )
