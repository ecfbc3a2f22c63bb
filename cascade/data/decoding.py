"""From a picture's file to the colours that every viewer shows: upright, sRGB, 8 bits."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from cascade.errors import UserError

LARGEST: Final = 128_000_000
"""Pixels of the largest picture that is decoded: above every camera but a few phones' 200 MP."""
_FORMATS: Final = (
    *("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"),
)
# Everything that Pillow's decoders raise for a damaged file.
UNREADABLE: Final = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
)


def is_picture(path: Path) -> bool:
    """Whether a file's content is a picture's, whatever its name."""
    try:
        with _patience(), Image.open(path, formats=_formats()):
            return True
    except UNREADABLE:
        return False


def read_upright(path: Path) -> Image.Image:
    """Decode a picture upright and in sRGB: RGBA where it has transparency, else RGB.

    An embedded colour profile is converted, one that is damaged is left out, as viewers do.

    Raises:
        UserError: the file is missing, corrupt or too large, or its numbers have no known range.
    """
    try:
        with _patience(), Image.open(path, formats=_formats()) as file:
            if file.width * file.height > LARGEST:
                raise UserError(
                    f"{path} is {file.width}x{file.height}, more than {LARGEST // 10**6} million "
                    "pixels; make it smaller."
                )
            return _in_srgb(_in_8_bits(_upright(file), path))
    except UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as a picture ({error}); replace or remove it."
        ) from None


def _upright(file: Image.Image) -> Image.Image:
    """Turn a picture as its camera says; damaged notes of the camera turn nothing."""
    try:
        return ImageOps.exif_transpose(file)
    except (*UNREADABLE, TypeError, KeyError, struct.error):
        file.load()  # where the pixels are the trouble, it is told
        return file


def _in_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """The picture with 8 bits a channel, its transparency an alpha channel."""
    info = image.info
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255 and return an all but white picture.
        deep = np.asarray(image)
        shallow = Image.fromarray((deep >> 8).astype(np.uint8))
        if isinstance(hidden := info.get("transparency"), int):
            shallow.putalpha(Image.fromarray(np.where(deep == hidden, 0, 255).astype(np.uint8)))
        shallow.info = {name: value for name, value in info.items() if name != "transparency"}
        return shallow
    if image.mode in ("I", "F"):
        raise UserError(
            f"{path} holds numbers of 32 bits, of which nobody states what is black and what is "
            "white; save it with 8 or 16 bits."
        )
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("L", "LA", "1") else "RGBA")
    return image.convert("RGB") if image.mode == "P" else image


def _in_srgb(image: Image.Image) -> Image.Image:
    """Convert by the embedded profile, or take the numbers as sRGB."""
    alpha = image.getchannel("A") if "A" in image.getbands() and image.mode != "LAB" else None
    colours = image.convert(image.mode.removesuffix("A")) if alpha is not None else image
    converted = _by_profile(colours, image.info.get("icc_profile")) or colours.convert("RGB")
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _by_profile(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The picture in sRGB, or None where there is nothing to convert, or nothing to do it by."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        if image.mode == "LAB":
            own = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        else:
            return None
        return ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


@cache
def _formats() -> list[str]:
    """The kinds of pictures that are read, of those that this Pillow knows."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


@contextmanager
def _patience() -> Iterator[None]:
    """Let no limit of Pillow's on metadata or warning of size stand before the pixels."""
    text = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    pixels = Image.MAX_IMAGE_PIXELS
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 28
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = text
        Image.MAX_IMAGE_PIXELS = pixels
