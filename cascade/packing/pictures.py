"""From what a source has to a record of a shard: decoded as proof, filtered, perhaps shrunk."""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from cascade.config.aspect import Aspect
from cascade.config.pack import SHRUNK_QUALITY, PackConfig
from cascade.data.decoding import (
    Encoded,
    PictureError,
    no_larger,
    on_ground,
    picture_format,
    read_upright,
)
from cascade.data.pack import ASPECTS, Note
from cascade.packing.records import Found, Refused, note_of

_ENDINGS: Final = {"JPEG": "jpg", "JPEG2000": "jp2", "MPO": "jpg", "TIFF": "tif"}

_SIDES: Final = ("width", "height")  # which nobody needs to bring


@dataclass(frozen=True)
class Record:
    """A record of a shard.

    Attributes:
        note: what is known of the picture.
        picture: its file.
        ending: of the file's name, for what it is.
        size: width and height as viewers show it, pixels.
        phash: perceptual hash, 64 bits.
    """

    note: Note
    picture: bytes
    ending: str
    size: tuple[int, int]
    phash: int


def prepared(found: Found, config: PackConfig, class_names: Sequence[str]) -> Record:
    """Make a record of what a source has.

    Raises:
        Refused: it is to be left out.
    """
    note = note_of(found, config, class_names)
    _require_numbers(note.numbers, config)
    file = Encoded(found.picture, found.source)
    try:
        image = read_upright(file)
        _require_shape(image.size, config)
        _require_numbers(dict(zip(_SIDES, image.size, strict=True)), config, of_sides=True)
        if config.shrink is not None and min(image.size) > config.shrink:
            file = Encoded(_encoded(no_larger(image, config.shrink)), found.source)
            image = read_upright(file)
        kind = picture_format(file)
    except PictureError as error:
        raise Refused("cannot be decoded", error.fault) from None
    ending = _ENDINGS.get(kind, kind.lower())
    return Record(note, file.data, ending, image.size, perceptual_hash(image))


def perceptual_hash(image: Image.Image) -> int:
    """Return 64 bits that are alike for pictures that look alike (ImageHash's phash)."""
    from imagehash import phash

    return int(str(phash(on_ground(image, "white"))), 16)


def nearest_aspect(size: tuple[int, int]) -> Aspect:
    """Return the aspect ratio that a picture of a width and height belongs to."""
    width, height = size
    return min(
        ASPECTS, key=lambda aspect: abs(math.log(width * aspect[1]) - math.log(height * aspect[0]))
    )


def is_held_out(phash: int, share: float) -> bool:
    """Report whether a picture is for validation; equal ones all are, or none."""
    digest = hashlib.blake2b(phash.to_bytes(8, "big"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _require_numbers(
    numbers: Mapping[str, float], config: PackConfig, of_sides: bool = False
) -> None:
    for text, condition in zip(config.where, config.conditions, strict=True):
        if (condition.name in _SIDES) != of_sides:
            continue
        value = numbers.get(condition.name)
        if value is None:
            raise Refused(f"no number '{condition.name}'")
        if not condition.holds(value):
            raise Refused(f"not {text}", f"{value:g}")


def _require_shape(size: tuple[int, int], config: PackConfig) -> None:
    least, most = min(size), max(size)
    told = f"{size[0]}x{size[1]}"
    if least < config.least_side:
        raise Refused(f"shorter side below {config.least_side}", told)
    if config.most_aspect is not None and most > config.most_aspect * least:
        raise Refused(f"longer than {config.most_aspect:g} times its shorter side", told)


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    if image.mode == "RGBA":
        image.save(buffer, "PNG")
    else:  # every pixel keeps its own colour
        image.save(buffer, "JPEG", quality=SHRUNK_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()
