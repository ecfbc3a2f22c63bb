"""`cascade train`: one stage from scratch."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file; see configs/ for examples.")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Replace one setting; may be repeated."),
    ] = None,
) -> None:
    """Train one stage from scratch, or on from a stage's weights.

    Started again with the same settings it goes on from its last checkpoint. On several GPUs:
    torchrun --nproc-per-node N -m cascade train CONFIG.
    """
    from cascade.config.train import PretrainConfig

    # Before torch is imported: a mistake in the settings is answered at once.
    settings = PretrainConfig.read(config, override or ())

    from cascade.train.pretrain import pretrain

    folder = pretrain(settings)
    typer.echo(f"The trained stage is in {folder}.")
