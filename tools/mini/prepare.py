"""Compose the world into the datasets that `cascade train` reads, on every core.

    python tools/mini/prepare.py --sprites build/mini/sprites --output build/mini

`base64` trains the base and `sr256` super-resolution; `held64` shows combinations that training
never sees, the reference of scores. Beside the files of every dataset (`cascade/data/array.py`)
lies `labels.npy`, N 5 int16: what each picture shows, by the vocabulary in `dataset.json`, -1 for
nothing. A dataset that exists is left as it is; one that was interrupted leaves no folder behind.
"""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console

from captions import ATTRIBUTES, Labels
from cascade.cli.console import run_command
from cascade.data.images import resize, square
from cascade.files import write_bytes
from cascade.progress import progress_bar
from photographs import Photograph, read_photographs
from world import SIDE, Split, World

KERNEL: Final = "bicubic"
LICENCE: Final = "MIT, Apache-2.0, CC0-1.0; see tools/mini/sources.toml"
LABELS: Final = "labels.npy"
_CHUNK: Final = 250  # pictures a worker makes at a time

Row = tuple[tuple[str, ...], list[int]]
"""A picture's captions, and its labels by the vocabulary."""


@dataclass(frozen=True)
class Job:
    """One dataset.

    Attributes:
        name: of its folder.
        size: of its pictures, pixels.
        count: composed pictures.
        split: of the world.
        turns: how many times each photo stands in it, where there are any.
    """

    name: str
    size: int
    count: int
    split: Split
    turns: int = 8


def main(
    output: Annotated[Path, typer.Option(help="Folder for the datasets.")],
    sprites: Annotated[Path, typer.Option(help="What make_sprites.py wrote.")] = Path(
        "build/mini/sprites"
    ),
    base: Annotated[int, typer.Option(min=1, help="Pictures of the base.")] = 300_000,
    large: Annotated[int, typer.Option(min=1, help="Pictures of super-resolution.")] = 30_000,
    held: Annotated[int, typer.Option(min=1, help="Pictures of held-out combinations.")] = 5_000,
    photos: Annotated[
        Path | None, typer.Option(help="Folder of photo packs: super-resolution learns them too.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is one a core.")] = 0,
) -> None:
    """Compose the base's, the held-out and the super-resolution dataset."""
    # Read before anything is composed: a pack that is not there is told at once.
    photographs = tuple(read_photographs(photos)) if photos else ()
    for job, added in (
        (Job("held64", 64, held, "held out"), ()),
        (Job("base64", 64, base, "training"), ()),
        (Job("sr256", SIDE, large, "training"), photographs),
    ):
        write_dataset(job, sprites, output / job.name, workers or os.cpu_count() or 1, added)


def write_dataset(
    job: Job, sprites: Path, folder: Path, workers: int, photos: tuple[Photograph, ...] = ()
) -> None:
    """Write one dataset, composed pictures and then photos, complete or not at all."""
    if folder.exists():
        Console().print(f"{folder} exists; left as it is.")
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    count = job.count + job.turns * len(photos)
    shape = (count, 3, job.size, job.size)
    np.lib.format.open_memmap(partial / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    rows = list(_composed(job, sprites, partial / "images.npy", workers))
    rows += _photographed(job, photos, partial / "images.npy")
    lines = (json.dumps(captions, ensure_ascii=False) + "\n" for captions, _ in rows)
    write_bytes("".join(lines).encode(), partial / "captions.jsonl")
    np.save(partial / LABELS, np.array([labels for _, labels in rows], dtype=np.int16))
    card = {
        "size": job.size,
        "count": count,
        "resize": KERNEL,
        "split": job.split,
        "vocabulary": _world(sprites).vocabulary(),
        "licence": LICENCE,
    }
    write_bytes((json.dumps(card, indent=2) + "\n").encode(), partial / "dataset.json")
    partial.rename(folder)


def coded(labels: Labels, vocabulary: dict[str, tuple[str, ...]]) -> list[int]:
    """Return the place of every attribute's value in the vocabulary, -1 for none."""
    values = {name: getattr(labels, name) for name in ATTRIBUTES}
    return [
        -1 if value is None else vocabulary[name].index(value) for name, value in values.items()
    ]


def _composed(job: Job, sprites: Path, images: Path, workers: int) -> Iterator[Row]:
    starts = range(0, job.count, _CHUNK)
    with progress_bar() as bar, ProcessPoolExecutor(workers) as pool:
        task = bar.add_task(job.name, total=job.count, details="")
        chunks = ((job, sprites, images, start) for start in starts)
        for rows in pool.map(_compose, chunks):
            bar.advance(task, len(rows))
            yield from rows


def _compose(chunk: tuple[Job, Path, Path, int]) -> list[Row]:
    """Make one worker's pictures and write them where they belong."""
    job, sprites, images, start = chunk
    world = _world(sprites)
    vocabulary = world.vocabulary()
    pixels = np.load(images, mmap_mode="r+")
    rows = []
    for index in range(start, min(start + _CHUNK, job.count)):
        picture = world.picture(index, job.split)
        pixels[index] = np.asarray(resize(picture.image, job.size, KERNEL)).transpose(2, 0, 1)
        rows.append((picture.captions, coded(picture.labels, vocabulary)))
    pixels.flush()
    return rows


def _photographed(job: Job, photos: tuple[Photograph, ...], images: Path) -> Iterator[Row]:
    """Whole photos, mirrored every other turn; their textures are what drawings lack."""
    pixels = np.load(images, mmap_mode="r+")
    for turn in range(job.turns):
        for number, photo in enumerate(photos):
            index = job.count + turn * len(photos) + number
            image = np.asarray(resize(square(photo.image), job.size, KERNEL)).transpose(2, 0, 1)
            pixels[index] = image[:, :, ::-1] if turn % 2 else image
            yield (photo.caption,), [-1] * len(ATTRIBUTES)
    pixels.flush()


@lru_cache(maxsize=1)
def _world(sprites: Path) -> World:
    """Open one world a process: reading the sprites takes longer than a chunk of pictures."""
    return World.open(sprites)


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
