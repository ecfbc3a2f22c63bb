"""Make the sprites of the world from the drawings' packages and the photo pack.

    python tools/mini/make_sprites.py --output build/mini/sprites

The drawings come from npm's packages (`packages.py`). Needs the extra `pretrain`.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.progress import track

from cascade.cli.console import run_command
from cascade.data.saliency import U2NetP
from cascade.files import write_bytes
from concepts import Thing, World, read_world
from cutouts import cut_out
from drawings import Drawings
from packages import fetch, read_packages
from photographs import read_photographs
from shaping import colourable, shaped
from sprites import DRAWN, INDEX, Sprite, Style


def drawn(thing: Thing, world: World, drawings: Drawings) -> Iterator[Sprite]:
    """Yield a thing's sprites in every drawn style."""
    for emoji in thing.emoji:
        for style in DRAWN:
            image = shaped(drawings.draw(emoji, style))
            head = world.heads.get(emoji, {}).get(style)
            yield Sprite(thing.name, style, image, head, colourable(image))


class Folder:
    """A folder of sprites that is being written, complete once `finish` has run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._count = 0
        self._index: dict[str, Any] = {"concepts": {}, "sprites": [], "accessories": {}}

    def add_concept(self, thing: Thing) -> None:
        """Enter a concept, with or without sprites."""
        self._index["concepts"][thing.name] = list(thing.nouns)

    def add_sprite(self, sprite: Sprite) -> None:
        """Write a sprite's picture and enter it."""
        self._index["sprites"].append(
            {
                "file": self._write(sprite.concept, sprite.style, sprite.image),
                "concept": sprite.concept,
                "style": sprite.style,
                "colourable": sprite.colourable,
                "head": asdict(sprite.head) if sprite.head else None,
            }
        )

    def add_accessory(self, name: str, style: Style, image: Image.Image) -> None:
        """Write an accessory's picture and enter it."""
        files = self._index["accessories"].setdefault(name, {})
        files[style] = self._write(name, style, image)

    def finish(self) -> None:
        """Write the index and take the place of an older folder."""
        write_bytes(json.dumps(self._index, indent=1).encode(), self._partial / INDEX)
        shutil.rmtree(self._path, ignore_errors=True)
        self._partial.rename(self._path)

    def _write(self, name: str, style: Style, image: Image.Image) -> str:
        lossless = style in ("flat", "cartoon")  # plain areas: as small, and nothing is lost
        buffer = BytesIO()
        image.save(buffer, "WEBP", lossless=lossless, quality=92, alpha_quality=100)
        file = f"{self._count:04d}-{name.replace(' ', '-')}-{style}.webp"
        write_bytes(buffer.getvalue(), self._partial / file)
        self._count += 1
        return file


def main(
    output: Annotated[Path, typer.Option(help="Folder for the sprites.")] = Path(
        "build/mini/sprites"
    ),
    packages: Annotated[Path, typer.Option(help="Folder of the drawings' packages.")] = Path(
        "build/mini/packages"
    ),
    photos: Annotated[Path, typer.Option(help="Folder of the photo pack.")] = Path(
        "../shared/data/packs"
    ),
) -> None:
    """Make all sprites."""
    world = read_world()
    photographs = {found.number: found for found in read_photographs(photos)}
    drawings, network = Drawings(fetch(read_packages(), packages)), U2NetP()
    folder = Folder(output)
    for thing in track(world.things, description="sprites"):
        folder.add_concept(thing)
        for sprite in (*drawn(thing, world, drawings), *cut_out(thing, photographs, network)):
            folder.add_sprite(sprite)
    for name, emoji in world.accessories.items():
        for style in DRAWN:
            folder.add_accessory(name, style, shaped(drawings.draw(emoji, style)))
    folder.finish()


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
