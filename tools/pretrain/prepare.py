"""Turn the shared folder's photo packs into the array datasets that pre-training reads.

    python tools/pretrain/prepare.py --output build/pretrain

Each dataset is a folder: `images.npy` (uint8, N 3 S S, readable with `mmap_mode="r"`),
`captions.jsonl` (line i: a JSON list of caption variants of image i) and `dataset.json`.
A dataset that exists is left as it is; one that was interrupted leaves no folder behind.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track

from captions import captions_of
from cascade.cli.mistakes import answer
from packs import PhotoPack, TinyPack

IMAGENET: Final = "ImageNet terms: non-commercial research"


@dataclass(frozen=True)
class Recipe:
    """One dataset: which pack it is made of and how large its pictures are."""

    name: str
    pack: str
    size: int
    source: str
    licence: str


def recipes(base_size: int) -> list[Recipe]:
    """Return the datasets of the small cascade whose base makes `base_size` pixels."""
    tiny = "Tiny-ImageNet-200"
    return [
        Recipe(f"base{base_size}", "tiny64_relevant", base_size, tiny, IMAGENET),
        Recipe(f"val{base_size}", "tiny64_val", base_size, f"{tiny} (validation)", IMAGENET),
        Recipe(
            "sr128",
            "sr256_photos",
            128,
            "ImageNet samples, clothing-dataset, GroceryStoreDataset",
            f"{IMAGENET}; clothing CC0; grocery MIT",
        ),
    ]


def main(
    output: Annotated[Path, typer.Option(help="Folder for the datasets.")],
    shared: Annotated[
        Path, typer.Option(envvar="DREAMCASCADE_SHARED", help="The shared data folder.")
    ] = Path("../shared"),
    size: Annotated[int, typer.Option(min=8, max=64, help="Side of the base's pictures.")] = 32,
) -> None:
    """Prepare the base's, the validation and the super-resolution dataset."""
    packs = shared / "data" / "packs"
    for recipe in recipes(size):
        write_dataset(recipe, packs, output / recipe.name)


def write_dataset(recipe: Recipe, packs: Path, folder: Path) -> None:
    """Write one dataset, complete or not at all."""
    if folder.exists():
        Console().print(f"{folder} exists; left as it is.")
        return
    pack: TinyPack | PhotoPack = (
        PhotoPack(packs, recipe.pack)
        if recipe.pack == "sr256_photos"
        else TinyPack(packs, recipe.pack)
    )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    images = np.lib.format.open_memmap(
        partial / "images.npy", mode="w+", dtype=np.uint8, shape=(len(pack), 3) + (recipe.size,) * 2
    )
    with (partial / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for index in track(range(len(pack)), description=recipe.name):
            photo = pack[index]
            captions = captions_of(photo.subject, np.asarray(photo.image), photo.box, index)
            lines.write(json.dumps(captions, ensure_ascii=False) + "\n")
            images[index] = np.asarray(square(photo.image, recipe.size)).transpose(2, 0, 1)
    images.flush()
    card = {
        "size": recipe.size,
        "count": len(pack),
        "resize": "bicubic",
        "source": recipe.source,
        "licence": recipe.licence,
        "sha256": {name: sha256(partial / name) for name in ("images.npy", "captions.jsonl")},
    }
    (partial / "dataset.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
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


if __name__ == "__main__":
    answer(lambda: typer.run(main))
