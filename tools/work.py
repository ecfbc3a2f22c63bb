"""One subject to work on: its photos, copied beside its runs, and what was kept out of them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cascade.config.dreambooth import Recipe
from cascade.config.folders import cascade_folder, read_manifest
from cascade.config.recipes import RECIPES
from cascade.data.images import Photos, read_photos
from cascade.dreambooth.masks import mask_beside
from cascade.files import write_bytes


@dataclass(frozen=True)
class Work:
    """One subject: the folder of its runs, its photos and the cascade to tune.

    Attributes:
        folder: of its runs.
        photos: to tune on.
        held_out: a photo kept out, if there were enough.
        class_noun: what they show.
        cascade: to tune.
    """

    folder: Path
    photos: Photos
    held_out: Image.Image | None
    class_noun: str
    cascade: str

    @property
    def class_images(self) -> Path:
        """The class images' folder, which subjects share."""
        return self.folder.parent / "class-images"

    @property
    def recipe(self) -> Recipe:
        """The cascade's own."""
        return RECIPES[read_manifest(cascade_folder(self.cascade)).recipe]


def prepare(photos: Photos, class_noun: str, output: Path, cascade: str) -> Work:
    """Keep one photo out where there are four or more, and copy the others beside the run.

    The folder is named by what it depends on, so other photos never meet an older run.
    """
    held_out = photos.images[-1] if len(photos.paths) >= 4 else None
    kept = photos.paths[:-1] if held_out else photos.paths
    # As they are: their transparency, and the masks beside them, say where the subject is.
    files = [file for photo in kept for file in (photo, mask_beside(photo)) if file.is_file()]
    digest = hashlib.sha256(f"{class_noun} {cascade}".encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    folder = output / digest.hexdigest()[:12]
    for file in files:
        write_bytes(file.read_bytes(), folder / "photos" / file.name)
    return Work(folder, read_photos(folder / "photos"), held_out, class_noun, cascade)
