"""Turn the shared folder's photo packs into the array datasets that pre-training reads.

    python tools/pretrain/prepare.py --output build/pretrain                       # every photo
    python tools/pretrain/prepare.py --output build/pretrain --classes tools/pretrain/narrow.txt

Each dataset is a folder: `images.npy` (uint8, N 3 S S, readable with `mmap_mode="r"`),
`captions.jsonl` (line i: a JSON list of caption variants of image i) and `dataset.json`.
A dataset that exists is left as it is; one that was interrupted leaves no folder behind.

`base64` holds the photos of the chosen packs and classes, a few of them turned grey, and behind
them composites of `cutouts.py`'s objects in other scenes; `val64` the validation photos of all
classes; `sr256` the larger photos of the super-resolution stages.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import numpy as np
import typer
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from captions import captions_of
from cascade.cli.mistakes import answer
from cascade.files import write_bytes
from compose import SCENES, composite, read_cutouts
from packs import Photo, PhotoPack, TinyPack, class_filter

IMAGENET: Final = "ImageNet terms: non-commercial research"
GREY: Final = 0.03  # share of photos turned black and white, and captioned so

Placed: TypeAlias = tuple[Photo, str]
"""A photo, and where a composed one shows its subject; nothing for a real one."""


@dataclass(frozen=True)
class Recipe:
    """One dataset: its pictures' size and where they come from."""

    name: str
    size: int
    count: int
    classes: tuple[str, ...]
    source: str
    licence: str


def main(
    output: Annotated[Path, typer.Option(help="Folder for the datasets.")],
    shared: Annotated[
        Path, typer.Option(envvar="DREAMCASCADE_SHARED", help="The shared data folder.")
    ] = Path("../shared"),
    pack: Annotated[
        list[str] | None, typer.Option(help="The base's pack; may be repeated.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File of the base's class ids; every class without it.")
    ] = None,
    composites: Annotated[
        float, typer.Option(min=0, help="Composites as a share of the base's photos.")
    ] = 0.2,
    size: Annotated[int, typer.Option(min=8, max=64, help="Side of the base's pictures.")] = 64,
    high: Annotated[int, typer.Option(min=64, max=256, help="Side of the large pictures.")] = 256,
) -> None:
    """Prepare the base's, the validation and the super-resolution dataset."""
    packs = shared / "data" / "packs"
    write_base(packs, output, pack or ["tiny64_relevant"], class_filter(classes), composites, size)
    validation = TinyPack(packs, "tiny64_val")
    tiny = "Tiny-ImageNet-200 (validation)"
    kept = tuple(sorted(validation.members()))
    recipe = Recipe(f"val{size}", size, len(validation), kept, tiny, IMAGENET)
    write_dataset(recipe, ((photo, "") for photo in _all(validation)), output / recipe.name)
    photos = PhotoPack(packs, "sr256_photos")
    source = "ImageNet samples, clothing-dataset, GroceryStoreDataset"
    licence = f"{IMAGENET}; clothing CC0; grocery MIT"
    recipe = Recipe(f"sr{high}", high, len(photos), (), source, licence)
    write_dataset(recipe, ((photo, "") for photo in _all(photos)), output / recipe.name)


def write_base(
    packs: Path,
    output: Path,
    names: Sequence[str],
    kept: frozenset[str] | None,
    composites: float,
    size: int,
) -> None:
    """Write the base's dataset: photos of every pack, then composites of their objects."""
    opened = {name: TinyPack(packs, name) for name in names}
    members = {name: pack.members(kept) for name, pack in opened.items()}
    photos = sum(len(places) for found in members.values() for places in found.values())
    composed = round(composites * photos)
    classes = tuple(sorted(wnid for found in members.values() for wnid in found))
    source = f"Tiny-ImageNet-200; {composed} composites of its objects and scenes"
    recipe = Recipe(f"base{size}", size, photos + composed, classes, source, IMAGENET)

    def pictures() -> Iterator[Placed]:
        random_ = random.Random(0)
        for name, pack in opened.items():
            places = sorted(place for found in members[name].values() for place in found)
            for place in places:
                photo = pack[place]
                yield (_greyed(photo) if random_.random() < GREY else photo), ""
        cutouts = [
            cutout
            for name, pack in opened.items()
            if composed
            for cutout in read_cutouts(pack, output / "cutouts" / f"{name}.npz")
        ]
        scenery = _scenery(opened, members) if composed else {}
        for number in range(composed):
            yield composite(number, cutouts, scenery)

    write_dataset(recipe, pictures(), output / recipe.name)


def write_dataset(recipe: Recipe, photos: Iterator[Placed], folder: Path) -> None:
    """Write one dataset, complete or not at all."""
    if folder.exists():
        Console().print(f"{folder} exists; left as it is.")
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shape = (recipe.count, 3, recipe.size, recipe.size)
    images = np.lib.format.open_memmap(
        partial / "images.npy", mode="w+", dtype=np.uint8, shape=shape
    )
    with (partial / "captions.jsonl").open("w", encoding="utf-8") as lines:
        rows = track(photos, description=recipe.name, total=recipe.count)
        for index, (photo, place) in enumerate(rows):
            pixels = np.asarray(photo.image)
            captions = captions_of(photo.subject, pixels, photo.box, index, place)
            lines.write(json.dumps(captions, ensure_ascii=False) + "\n")
            images[index] = np.asarray(square(photo.image, recipe.size)).transpose(2, 0, 1)
    images.flush()
    card = {
        "size": recipe.size,
        "count": recipe.count,
        "resize": "bicubic",
        "classes": recipe.classes,
        "source": recipe.source,
        "licence": recipe.licence,
        "sha256": {name: sha256(partial / name) for name in ("images.npy", "captions.jsonl")},
    }
    write_bytes((json.dumps(card, indent=2) + "\n").encode(), partial / "dataset.json")
    partial.rename(folder)


def square(image: Image.Image, size: int) -> Image.Image:
    """Return the centre square of `image` at `size` pixels, by Pillow's antialiased bicubic."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _all(pack: TinyPack | PhotoPack) -> Iterator[Photo]:
    return (pack[index] for index in range(len(pack)))


def _greyed(photo: Photo) -> Photo:
    return replace(photo, image=ImageOps.grayscale(photo.image).convert("RGB"))


def _scenery(
    opened: dict[str, TinyPack], members: dict[str, dict[str, list[int]]]
) -> dict[str, list[Image.Image]]:
    """The landscape photos that objects are set into, by WordNet id."""
    return {
        wnid: [pack[place].image for place in members[name][wnid]]
        for name, pack in opened.items()
        for wnid in SCENES
        if wnid in members[name]
    }


if __name__ == "__main__":
    answer(lambda: typer.run(main))
