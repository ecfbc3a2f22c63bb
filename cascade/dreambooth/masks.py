"""Masks of the photos: where the subject is, from whatever tells it."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from cascade.config.dreambooth import MaskSource
from cascade.data.finding import MASK_SUFFIX, sort_files
from cascade.data.images import Photos, grid, read_alpha, read_mask, write_png
from cascade.data.saliency import U2NetP
from cascade.errors import UserError

# Shares of a photo: with less or more of it marked, a mask tells nothing.
_LEAST: Final = 0.005
_MOST: Final = 0.995
_TILE: Final = 256  # pixels of the contact sheet
_GROUND: Final = "mediumseagreen"


@dataclass(frozen=True)
class Mask:
    """The mask of the subject in a photo.

    Attributes:
        image: grey, of the size that the photo is held in; 255 on the subject.
        origin: where it comes from; with the photo itself, all that it depends on.
    """

    image: Image.Image
    origin: str


def read_masks(photos: Photos, source: MaskSource | Path) -> tuple[Mask, ...]:
    """Read a mask for each photo, or find it."""
    network: U2NetP | None = None
    masks = []
    for path, photo, size in zip(photos.paths, photos.images, photos.sizes, strict=True):
        mask = _given(path, size, source, photos.paths)
        if mask is None:
            network = network or U2NetP()
            mask = Mask(network(photo), f"found by U2-Net-p {network.digest}")
        if mask.image.size != photo.size:
            smaller = mask.image.resize(photo.size, Image.Resampling.BILINEAR, reducing_gap=None)
            mask = replace(mask, image=smaller)
        _check(path, mask)
        masks.append(mask)
    return tuple(masks)


def mask_beside(photo: Path) -> Path:
    """Return the mask file beside a photo, if there is one."""
    return photo.with_name(photo.stem + MASK_SUFFIX)


def write_sheet(photos: Photos, masks: tuple[Mask, ...], path: Path) -> None:
    """Write a contact sheet: a row per photo, with its mask and its subject on a plain ground."""
    tiles = []
    for photo, mask in zip(photos.images, masks, strict=True):
        cut = Image.composite(photo, Image.new("RGB", photo.size, _GROUND), mask.image)
        for tile in (photo, mask.image.convert("RGB"), cut):
            tiles.append(ImageOps.pad(tile, (_TILE, _TILE), color="white"))
    write_png(grid(tiles, columns=3), path)


def _given(
    path: Path, size: tuple[int, int], source: MaskSource | Path, photos: tuple[Path, ...]
) -> Mask | None:
    """Return the user's own mask; None where one is to be found."""
    if isinstance(source, Path):
        return _from_file(_in_folder(path, source, photos), size)
    if source == "auto":
        beside = mask_beside(path)
        if beside.is_file():
            return _from_file(beside, size)
    alpha = read_alpha(path)
    if alpha is not None and (source == "alpha" or _LEAST <= _marked(alpha) <= _MOST):
        return Mask(alpha, "alpha")
    if source == "alpha":
        raise UserError(
            f"{path} has no alpha channel to take its mask from; use --masks auto, or give a "
            "folder of masks."
        )
    return None


def _in_folder(path: Path, folder: Path, photos: tuple[Path, ...]) -> Path:
    """Return a photo's mask in a folder, by OneTrainer's naming or by kohya's."""
    if not folder.is_dir():
        raise UserError(f"There is no folder of masks {folder}; check --masks.")
    labelled = folder / (path.stem + MASK_SUFFIX)
    if labelled.is_file():
        return labelled
    others = [photo.resolve() for photo in photos]
    same = [
        file
        for file in sort_files(folder).pictures
        if file.stem == path.stem and file.resolve() not in others
    ]
    if not same:
        raise UserError(
            f"The folder {folder} holds no mask of {path.name}; add {path.stem}.png or "
            f"{labelled.name}, white on the subject."
        )
    return min(same, key=lambda file: file.suffix.lower() != ".png")


def _from_file(file: Path, size: tuple[int, int]) -> Mask:
    """Read a mask file, of its photo's size or of another of the same shape."""
    image = read_mask(file)
    width, height = size
    if abs(image.width * height / image.height - width) > max(1.0, width / image.width):
        raise UserError(
            f"The mask {file} is {image.width}x{image.height} but its photo, upright, is "
            f"{width}x{height}; make it of the photo's shape."
        )
    return Mask(image, f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}")


def _check(path: Path, mask: Mask) -> None:
    marked = _marked(mask.image)
    if not _LEAST <= marked <= _MOST:
        what = "nothing" if marked < _LEAST else "everything"
        raise UserError(
            f"The mask of {path.name} ({mask.origin.rpartition(' ')[0] or mask.origin}) marks "
            f"{what} as the subject; make {path.stem}{MASK_SUFFIX} beside it, white on the "
            "subject, leave the photo out, or use --masks none."
        )


def _marked(mask: Image.Image) -> float:
    """Return the share of a mask that is rather subject than background."""
    return float((np.asarray(mask) > 127).mean())
