"""Pictures: finding, reading, squaring, resizing, writing.

Shapes: `B` batch, `C` = 3 colours, `H W` pixels; values in [-1, 1].
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cascade.errors import UserError
from cascade.files import write_bytes

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MASK_SUFFIX = "-masklabel.png"  # OneTrainer's name for a mask beside its photo
# Everything that Pillow's decoders raise for a damaged or an absurdly large file.
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
)
KERNELS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}

Box = tuple[int, int, int, int]
"""Left, top, right and lower edge, in pixels."""


@dataclass(frozen=True)
class Photos:
    """The pictures of a folder, decoded, and the names of the files that are no pictures."""

    paths: tuple[Path, ...]
    images: tuple[Image.Image, ...]
    skipped: tuple[str, ...]


def read_photos(folder: Path, least_side: int = 1) -> Photos:
    """Decode every picture directly inside a folder, in the order of their names.

    Masks beside photos (`NAME-masklabel.png`) are left out.

    Args:
        folder: where they are.
        least_side: the shorter side that each must have, pixels.

    Raises:
        UserError: no such folder, no pictures in it, a corrupt picture, or one too small.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give a folder of 3 to 5 photos.")
    files = sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and not p.name.startswith(".") and not p.name.endswith(MASK_SUFFIX)
    )
    paths = [p for p in files if p.suffix.lower() in SUFFIXES]
    skipped = tuple(p.name for p in files if p.suffix.lower() not in SUFFIXES)
    if not paths:
        found = f" (it holds {', '.join(skipped[:5])})" if skipped else ""
        raise UserError(
            f"The folder {folder} holds no pictures{found}; add .jpg, .png or .webp files."
        )
    images = tuple(read_image(path) for path in paths)
    small = [
        f"{path.name} ({image.width}x{image.height})"
        for path, image in zip(paths, images, strict=True)
        if min(image.size) < least_side
    ]
    if small:
        raise UserError(
            f"Too small for a stage of {least_side} pixels: {', '.join(small)}; "
            f"use photos of at least {least_side}x{least_side}, or leave these out."
        )
    return Photos(tuple(paths), images, skipped)


def read_image(path: Path) -> Image.Image:
    """Decode one picture upright and in RGB; transparency is laid on white.

    Raises:
        UserError: the file is missing or corrupt.
    """
    return _on_ground(_read_upright(path), "white")


def read_alpha(path: Path) -> Image.Image | None:
    """Decode a picture's alpha channel upright, in grey; None where it has none.

    Raises:
        UserError: the file is missing or corrupt.
    """
    upright = _read_upright(path)
    return upright.getchannel("A") if upright.mode == "RGBA" else None


def read_mask(path: Path) -> Image.Image:
    """Decode a mask file upright and in grey; what is transparent in it is black.

    Raises:
        UserError: the file is missing or corrupt.
    """
    return _on_ground(_read_upright(path), "black").convert("L")


def _read_upright(path: Path) -> Image.Image:
    """Decode a picture upright, in RGBA where it has transparency, else in RGB."""
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith("I;16"):
                # Pillow would clip 16-bit grey at 255 and return an all but white picture.
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            layered = upright.mode in ("RGBA", "LA", "P", "PA") and upright.has_transparency_data
            return upright.convert("RGBA" if layered else "RGB")
    except UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as a picture ({error}); replace or remove it."
        ) from None


def _on_ground(image: Image.Image, colour: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def square(image: Image.Image) -> Image.Image:
    """Cut the largest centred square."""
    return image.crop(centred_square(image))


def centred_square(image: Image.Image) -> Box:
    """Where the largest centred square is."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def resize(image: Image.Image, size: int, kernel: str) -> Image.Image:
    """Resize a square picture with Pillow's antialiased kernel, no reducing gap."""
    if image.size == (size, size):
        return image
    return image.resize((size, size), KERNELS[kernel], reducing_gap=None)


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Return a picture (8-bit, H W C) as a C H W tensor in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def to_tensors(images: Sequence[Image.Image]) -> Tensor:
    """Return pictures of one size as a B C H W tensor in [-1, 1]."""
    return torch.stack([to_tensor(image) for image in images])


def to_pil(images: Tensor) -> list[Image.Image]:
    """Round a B C H W tensor in [-1, 1] to 8-bit pictures."""
    pixels = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    arrays = pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Lay pictures of one size on a white sheet, row by row."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def write_png(image: Image.Image, path: Path, note: PngInfo | None = None) -> None:
    """Write a PNG, perhaps with notes in it; a reader sees either the whole file or none."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=note)
    write_bytes(buffer.getvalue(), path)
