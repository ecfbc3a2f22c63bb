"""Put trained stages and the text encoder together into the cascade that ships.

    python tools/pretrain/assemble.py runs/pretrain/base32/stage runs/pretrain/sr128/stage

Weights are stored in bfloat16, half the size; they are loaded and used in float32.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from cascade.cli.mistakes import answer
from cascade.config.stage import MANIFEST, CascadeManifest
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.stage import Stage
from cascade.text.t5 import TextEncoder

LICENCE = "Research only: trained on photos under the ImageNet terms of access. See README.md."


def main(
    stages: Annotated[list[Path], typer.Argument(help="Stage folders, base first.")],
    output: Annotated[
        Path, typer.Option(help="The cascade's folder; it holds the text encoder.")
    ] = Path("cascade/zoo/mini"),
    name: Annotated[str, typer.Option(help="The cascade's name.")] = "mini",
) -> None:
    width = TextEncoder.load(output / "text").width
    loaded = [Stage.load(folder) for folder in stages]
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


if __name__ == "__main__":
    answer(lambda: typer.run(main))
