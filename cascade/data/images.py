"""Reading, squaring, resizing and writing of pictures.

Shapes: `B` batch, `C` = 3 colours, `H W` pixels; values in [-1, 1].
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cascade.config.stage import ResizeKernel
from cascade.data.decoding import Encoded, no_larger, on_ground, read_upright
from cascade.data.finding import find_pictures
from cascade.errors import UserError
from cascade.files import write_bytes

_USUAL: Final = 20  # photos

Box = tuple[int, int, int, int]
"""Left, top, right and lower edge, in pixels."""


@dataclass(frozen=True)
class Photos:
    """The pictures of a folder, decoded.

    Attributes:
        paths: the files.
        images: what is in them, as small as was enough.
        sizes: width and height of each as its file has it, upright, pixels.
        skipped: names of the files that are no pictures.
        notes: what a person should know of the folder, in sentences.
    """

    paths: tuple[Path, ...]
    images: tuple[Image.Image, ...]
    sizes: tuple[tuple[int, int], ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_photos(folder: Path, least_side: int = 1, enough: int | None = None) -> Photos:
    """Decode every picture directly inside a folder, in the order of their names.

    Masks beside photos (`NAME-masklabel.png`) are left out.

    Args:
        least_side: the shorter side that each must have, pixels.
        enough: the shorter side to make larger ones as small as, one after another; None leaves
            them as they are.
    """
    found = find_pictures(folder)
    read = [_read(path, enough) for path in found.pictures]
    sizes, images = tuple(size for size, _ in read), tuple(image for _, image in read)
    require_sides(found.pictures, sizes, least_side)
    notes = list(found.notes())
    if len(images) > _USUAL:
        notes.append(f"{len(images)} photos are many: 3 to 5 of one subject are usual.")
    return Photos(found.pictures, images, sizes, found.others, tuple(notes))


def _read(path: Path, enough: int | None) -> tuple[tuple[int, int], Image.Image]:
    """Read a picture's size, and the picture, made small where that is enough."""
    image = read_image(path)
    return image.size, image if enough is None else no_larger(image, enough)


def require_sides(paths: Sequence[Path], sizes: Sequence[tuple[int, int]], least_side: int) -> None:
    """Refuse pictures whose shorter side is below a stage's."""
    small = [
        f"{path.name} ({width}x{height})"
        for path, (width, height) in zip(paths, sizes, strict=True)
        if min(width, height) < least_side
    ]
    if small:
        raise UserError(
            f"Too small for a stage of {least_side} pixels: {', '.join(small)}; "
            f"use photos of at least {least_side}x{least_side}, or leave these out."
        )


def read_image(path: Path | Encoded, least_side: int | None = None) -> Image.Image:
    """Decode one picture upright and in RGB; transparency is laid on white.

    Args:
        least_side: a shorter side that is enough; see `read_upright`.
    """
    return on_ground(read_upright(path, least_side), "white")


def read_alpha(path: Path) -> Image.Image | None:
    """Decode a picture's alpha channel upright, in grey; None where it has none."""
    upright = read_upright(path)
    return upright.getchannel("A") if upright.mode == "RGBA" else None


def read_mask(path: Path) -> Image.Image:
    """Decode a mask file upright and in grey; what is transparent in it is black."""
    return on_ground(read_upright(path), "black").convert("L")


def square(image: Image.Image) -> Image.Image:
    """Cut the largest centred square."""
    return image.crop(centred_square(image))


def centred_square(image: Image.Image) -> Box:
    """Return the largest centred square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def resize(image: Image.Image, size: int, kernel: ResizeKernel) -> Image.Image:
    """Resize a square picture with Pillow's antialiased kernel, no reducing gap."""
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling[kernel.upper()], reducing_gap=None)


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Return a picture (8-bit, H W C) as a C H W tensor in [-1, 1]."""
    return normalised(torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1))


def normalised(pixels: Tensor) -> Tensor:
    """Return 8-bit pixels in [-1, 1], in float32; others are returned as they are."""
    if pixels.dtype != torch.uint8:
        return pixels
    # A divisor of its own: by a plain number a GPU multiplies with the reciprocal, which is another
    # last bit than the CPU's.
    half = torch.full((), 127.5, device=pixels.device)
    return pixels.float().div_(half).sub_(1.0)


def to_tensors(images: Sequence[Image.Image | np.ndarray]) -> Tensor:
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


def png_note(notes: Mapping[str, str]) -> PngInfo:
    """Return texts as a PNG holds them."""
    note = PngInfo()
    for name, text in notes.items():
        note.add_itxt(name, text)
    return note


def write_png(image: Image.Image, path: Path, note: PngInfo | None = None) -> None:
    """Write a PNG, perhaps with notes in it; a reader sees either the whole file or none."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=note)
    write_bytes(buffer.getvalue(), path)
