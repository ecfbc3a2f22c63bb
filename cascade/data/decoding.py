"""Decoding of a picture's file to what every viewer shows: upright, sRGB, 8 bits."""

import io
import struct
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Final, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

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
_PNG: Final = b"\x89PNG\r\n\x1a\n"
# A PNG's texts that may say how it is turned, if they are no longer than a camera's notes.
_TURNING: Final = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_NOTES: Final = 2**16
_LARGEST_PROFILE: Final = 2**24  # bytes; printers' profiles have some three million


class Encoded(NamedTuple):
    """A picture's file in memory, and what people know it by."""

    data: bytes
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str) -> IO[bytes]:
        """Open it as a `Path` is opened, to be read."""
        assert mode == "rb", "it is read"
        return io.BytesIO(self.data)


class PictureError(UserError):
    """A picture that cannot be decoded."""

    def __init__(self, file: object, fault: str, mend: str) -> None:
        super().__init__(f"{file} {fault}; {mend}.")
        self.fault = fault


def is_picture(path: Path) -> bool:
    """Report whether a file's content is a picture's, whatever its name."""
    try:
        with path.open("rb") as stream:
            _opened(stream)
    except UNREADABLE:
        return False
    return True


def picture_format(path: Path | Encoded) -> str:
    """Return Pillow's word for what a picture's file is, such as JPEG.

    Raises:
        PictureError: as `read_upright`.
    """
    try:
        with path.open("rb") as stream:
            return _opened(stream)[0].format or ""
    except UNREADABLE as error:
        raise _unreadable(path, error) from None


def read_upright(path: Path | Encoded, least_side: int | None = None) -> Image.Image:
    """Decode a picture upright and in sRGB: RGBA where it has transparency, else RGB.

    An embedded colour profile is converted, one that is damaged is left out, as viewers do.

    Args:
        path: the file, on a disk or in memory.
        least_side: a shorter side that is enough, pixels. A JPEG is then decoded at a half, a
            quarter or an eighth of its size where that is no less: of a large photo neither the
            memory nor the time is spent. None decodes every pixel.

    Raises:
        PictureError: it cannot be decoded.
    """
    try:
        with path.open("rb") as stream:
            file, bits = _opened(stream)
            if file.width * file.height > LARGEST:
                size, limit = f"{file.width}x{file.height}", f"{LARGEST // 10**6} million pixels"
                raise PictureError(path, f"is {size}, more than {limit}", "make it smaller")
            if least_side is not None:
                file.draft(None, (least_side, least_side))
            _turn(file)
            return _in_srgb(file, bits, path)
    except UNREADABLE as error:
        raise _unreadable(path, error) from None


def on_ground(image: Image.Image, colour: str) -> Image.Image:
    """Lay what is transparent on a colour."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def no_larger(image: Image.Image, side: int) -> Image.Image:
    """Shrink a picture until its shorter side has at most `side` pixels."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    width, height = (round(scale * length) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)


def _unreadable(path: Path | Encoded, error: Exception) -> PictureError:
    return PictureError(path, f"cannot be read as a picture ({error})", "replace or remove it")


def _opened(stream: IO[bytes]) -> tuple[ImageFile.ImageFile, int]:
    """Open a picture, and return how many bits each of its samples has in the file."""
    if stream.read(len(_PNG)) == _PNG:
        png = _PNG + stream.read()
        pixels, profile = _without_texts(png)
        file = _identified(io.BytesIO(pixels))
        file.info["icc_profile"] = profile
        return file, png[24]
    file = _identified(stream)
    if isinstance(file, TiffImageFile):
        return file, file.tag_v2.get(BITSPERSAMPLE, (1,))[0]
    return file, 16 if file.mode.startswith("I") else 8


def _identified(stream: IO[bytes]) -> ImageFile.ImageFile:
    """Do what `Image.open` does, which warns of a large photo as of an attack.

    It can be kept from that for all threads only.
    """
    stream.seek(0)
    start = stream.read(16)
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if accept is None or accept(start) is True:
            stream.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # it is another
                return factory(stream, "")
    raise UnidentifiedImageError("cannot identify image file")


def _without_texts(png: bytes) -> tuple[bytes, bytes | None]:
    """Leave a PNG's texts out, and take its colour profile out.

    Pillow refuses the whole picture where one of them has more than a megabyte, as editors write;
    its limits hold for all threads, so they are none to change.
    """
    kept, profile, at = [_PNG], None, len(_PNG)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        kind, data = png[at + 4 : at + 8], png[at + 8 : end - 4]
        if kind == b"iCCP":
            packed = data.partition(b"\0")[2][1:]  # behind its name and the packing's number
            with suppress(zlib.error):
                profile = zlib.decompressobj().decompress(packed, _LARGEST_PROFILE)
        elif kind not in (b"tEXt", b"zTXt", b"iTXt") or (
            data.startswith(_TURNING) and len(data) < _NOTES
        ):
            kept.append(png[at:end])
        at = end
    return b"".join(kept), profile


def _turn(file: ImageFile.ImageFile) -> None:
    """Load a picture and turn it as its camera says, as far as that can be read."""
    try:
        ImageOps.exif_transpose(file, in_place=True)
    except (*UNREADABLE, TypeError, KeyError, struct.error):
        file.load()  # which fails where the pixels are the trouble


def _in_srgb(file: ImageFile.ImageFile, bits: int, path: Path | Encoded) -> Image.Image:
    """Return the loaded picture's colours, and its transparency as an alpha channel."""
    alpha = _alpha(file, bits)
    file.info.pop("transparency", None)  # Pillow would convert it too
    colours = _by_profile(_in_8_bits(file, bits, path), file.info.get("icc_profile"))
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _alpha(file: ImageFile.ImageFile, bits: int) -> Image.Image | None:
    """Return the picture's transparency, None where it has none."""
    key = file.info.get("transparency")
    if key is None or file.mode not in ("1", "L", "RGB", "I;16"):
        return file.convert("RGBA").getchannel("A") if file.has_transparency_data else None
    # One colour is transparent (PNG, section 11.3.1.1). It is given in the file's own bits, while
    # Pillow widens samples of less than 8 bits to them, and cuts those of colours at them.
    hidden = np.array(key)
    if file.mode == "L":
        hidden *= 255 // (2**bits - 1)
    elif file.mode == "RGB" and bits == 16:
        hidden >>= 8
    seen = np.asarray(file) != hidden
    opaque = seen.any(axis=-1) if seen.ndim == 3 else seen
    return Image.fromarray(opaque.astype(np.uint8) * 255)


def _in_8_bits(file: ImageFile.ImageFile, bits: int, path: Path | Encoded) -> Image.Image:
    """Return the colours in 8 bits, in a mode that a profile may be of: L, RGB, CMYK, LAB."""
    # A PGM's numbers are scaled to 16 bits, and held in 32.
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format == "PPM"):
        # Pillow would clip at 255 and return an all but white picture.
        samples = np.asarray(file) >> (bits - 8)
        if isinstance(file, TiffImageFile) and file.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
            samples = 255 - samples  # 0 is white
        return Image.fromarray(samples.astype(np.uint8))
    if file.mode in ("I", "F"):
        raise PictureError(
            path,
            "holds numbers of 32 bits, of which nobody states what is black and what is white",
            "save it with 8 or 16 bits",
        )
    if file.mode in ("1", "LA"):
        return file.convert("L")
    return file if file.mode in ("L", "RGB", "CMYK", "LAB") else file.convert("RGB")


def _by_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by the embedded profile, or take the numbers as sRGB."""
    try:
        if image.mode == "LAB":
            own = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        else:
            return image.convert("RGB")
        space = own.profile.xcolor_space
        if space == "RGB " and image.mode == "L":
            image = image.convert("RGB")
        elif space == "GRAY" and image.mode == "RGB" and _is_grey(image):
            image = image.getchannel("R")  # Pillow reads 16 bits of grey with alpha as colours
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):  # damaged, or of other samples
        return image.convert("RGB")
    assert converted is not None, "it is not made in place"
    return converted


def _is_grey(image: Image.Image) -> bool:
    red, *others = (band.tobytes() for band in image.split())
    return all(other == red for other in others)


@cache
def _formats() -> list[str]:
    """Return the formats that are read, of those that this Pillow knows."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]
