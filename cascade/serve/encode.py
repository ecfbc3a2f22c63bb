"""Pictures as files in memory."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any, Final

from PIL import ExifTags, Image
from torch import Tensor

from cascade.data.images import png_note, to_pil
from cascade.serve.images import FileFormat

_LARGEST: Final = 60_000  # bytes of texts in a JPEG, whose EXIF block ends at 65,533


def encoded(image: Tensor, kind: FileFormat, quality: int | None, notes: Mapping[str, str]) -> str:
    """Return a picture's file in base64, in which its notes stand.

    Args:
        image: C H W in [-1, 1].
        quality: of a JPEG or WebP, 0 to 100; None is 100.
        notes: a PNG has them as `cascade sample` writes them, others as a JSON object in the
            description of their EXIF block, those left out that are too long for it.
    """
    buffer = io.BytesIO()
    picture = to_pil(image[None])[0]
    if kind == "png":
        options: dict[str, Any] = {"pnginfo": png_note(notes)}
    else:
        options = {"quality": 100 if quality is None else quality, "exif": _exif(notes)}
    picture.save(buffer, format=kind.upper(), **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _exif(notes: Mapping[str, str]) -> Image.Exif:
    kept: dict[str, str] = {}
    room = _LARGEST
    for name, text in sorted(notes.items(), key=lambda note: len(note[1])):
        room -= len(json.dumps({name: text}))
        if room > 0:
            kept[name] = text
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps(kept)
    return exif
