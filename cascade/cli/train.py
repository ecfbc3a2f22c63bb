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
    from rich.console import Console

    from cascade.config.train import PretrainConfig
    from cascade.train.pretrain import pretrain

    folder = pretrain(PretrainConfig.read(config, override or ()))
    Console().print(f"The trained stage is in {folder}.")
