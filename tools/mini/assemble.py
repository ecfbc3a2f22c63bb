"""Put trained stages and the text encoder together into the cascade that ships.

    python tools/mini/assemble.py runs/pretrain/base64/stage runs/pretrain/sr256/stage

Weights are stored in bfloat16, half the size; they are loaded and used in float32. How a stage is
sampled is best found after it was trained: `--settings` takes it from the stage's TOML file as it
is now, not from the trained stage.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from cascade.cli.console import run_command
from cascade.config.folders import MANIFEST, CascadeManifest
from cascade.config.stage import StageConfig
from cascade.config.train import PretrainConfig
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.stage import Stage
from cascade.text.encoder import TextEncoder

LICENCE = "Apache-2.0; attributions in README.md."


def main(
    stages: Annotated[list[Path], typer.Argument(help="Stage folders, base first.")],
    output: Annotated[
        Path, typer.Option(help="The cascade's folder; it holds the text encoder.")
    ] = Path("cascade/zoo/mini"),
    name: Annotated[str, typer.Option(help="The cascade's name.")] = "mini",
    settings: Annotated[
        list[Path] | None, typer.Option(help="A training run's TOML file; may be repeated.")
    ] = None,
) -> None:
    """Write the stages and the manifest into the cascade's folder."""
    width = TextEncoder.load(output / "text").width
    loaded = [Stage.load(folder) for folder in stages]
    for path in settings or ():
        loaded = _resampled(loaded, path)
    for stage in loaded:
        if stage.config.unet.text_width != width:
            raise UserError(f"Stage '{stage.config.name}' was trained with another text encoder.")
        stage.save(output / stage.config.name, torch.bfloat16)
    manifest = CascadeManifest(
        name=name,
        stages=tuple(stage.config.name for stage in loaded),
        recipe="mini",
        licence=LICENCE,
    )
    write_bytes((manifest.model_dump_json(indent=2) + "\n").encode(), output / MANIFEST)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{output}: {', '.join(manifest.stages)}; {size / 2**20:.2f} MiB in all")


def _resampled(stages: list[Stage], path: Path) -> list[Stage]:
    """Give the stage that a file describes the file's sampler and sampling level."""
    wanted = PretrainConfig.read(path, ()).stage
    if wanted.name not in {stage.config.name for stage in stages}:
        raise UserError(f"{path} describes stage '{wanted.name}', which is none of those given.")
    return [
        stage.with_network(stage.network, _sampling(stage.config, wanted))
        if stage.config.name == wanted.name
        else stage
        for stage in stages
    ]


def _sampling(trained: StageConfig, wanted: StageConfig) -> StageConfig:
    low_res = trained.low_res
    if low_res is not None and wanted.low_res is not None:
        low_res = low_res.model_copy(update={"sampling_level": wanted.low_res.sampling_level})
    return trained.model_copy(update={"sampler": wanted.sampler, "low_res": low_res})


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
