"""Random fields and the pictures made of them: what grounds, skies and walls are painted with.

Shapes: a field is `H W` float32 or one that broadcasts to it. Lengths are in pixels. Everything
random comes from the generator that is handed in.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Field = NDArray[np.floating[Any]]
Colour = tuple[int, int, int]  # RGB, 0-255
Size = tuple[int, int]  # rows, columns

_LEVELS: Final = np.linspace(0.0, 1.0, 256)


def noise(
    rng: np.random.Generator, size: Size, cells: Size, octaves: int = 1, fade: float = 0.5
) -> Field:
    """Draw smooth noise in about -1..1: each octave has twice the cells and `fade` the weight."""
    field = np.zeros((1, 1), np.float32)
    for octave in range(octaves):
        cell = min(size[0], cells[0] << octave), min(size[1], cells[1] << octave)
        field = _enlarged(field, cell)
        field += (rng.random(cell, np.float32) * 2 - 1) * np.float32(fade**octave)
    field *= np.float32(1.3 / sum(fade**octave for octave in range(octaves)))
    return _enlarged(field, size)


def _enlarged(field: Field, size: Size) -> Field:
    if field.shape == size:
        return field
    rows, columns = size
    picture = Image.fromarray(field).resize((columns, rows), Image.Resampling.BICUBIC)
    return np.array(picture)


def grain(rng: np.random.Generator, size: Size) -> Field:
    """Draw one of 256 values in -1..1 for every pixel, independent of the others."""
    drawn = np.frombuffer(rng.bytes(size[0] * size[1]), np.uint8).reshape(size)
    return drawn * np.float32(2 / 255) - np.float32(1)


def contour(
    rng: np.random.Generator, length: int, cells: int, octaves: int = 1, fade: float = 0.5
) -> Field:
    """Draw one line of noise, `length` values in about -1..1."""
    line: Field = noise(rng, (1, length), (1, cells), octaves, fade)[0]
    return line


def down(rows: int) -> Field:
    """Count from 0 in the first row to 1 in the last: `rows 1`."""
    return np.linspace(0, 1, rows, dtype=np.float32)[:, None]


def across(columns: int) -> Field:
    """Count from 0 in the first column to 1 in the last: `columns`."""
    return np.linspace(0, 1, columns, dtype=np.float32)


def as_mask(field: Field) -> Image.Image:
    """Turn a field of 0..1, clipped there, into a mask."""
    return Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))


def below(heights: Field, rows: int, soft: float = 1.0) -> Image.Image:
    """Mask what lies below a line of one height a column, with an edge of `soft` pixels."""
    line = np.arange(rows, dtype=np.float32)[:, None] + np.float32(0.5)
    return as_mask((line - heights) / np.float32(soft) + np.float32(0.5))


def coloured(field: Field, stops: Sequence[Colour]) -> Image.Image:
    """Paint a field: 0 is the first colour, 1 the last, what lies between goes through the rest."""
    picture = as_mask(field)
    at = np.linspace(0.0, 1.0, len(stops))
    channels = [np.interp(_LEVELS, at, channel) for channel in zip(*stops, strict=True)]
    picture.putpalette(np.stack(channels, axis=1).round().astype(np.uint8).tobytes())
    return picture.convert("RGB")


def gradient(size: Size, stops: Sequence[Colour]) -> Image.Image:
    """Paint rows that go from the first colour down to the last."""
    rows, columns = size
    return coloured(down(rows), stops).resize((columns, rows), Image.Resampling.NEAREST)


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """Mix two colours, `share` of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def varied(rng: np.random.Generator, colour: Colour, by: float = 0.1) -> Colour:
    """Make a colour lighter or darker by up to `by`, and shift its hue by a third of that."""
    light = rng.uniform(1 - by, 1 + by)
    tint = rng.uniform(1 - by / 3, 1 + by / 3, 3)
    red, green, blue = (
        int(np.clip(c * light * t, 0, 255)) for c, t in zip(colour, tint, strict=True)
    )
    return red, green, blue


def masonry(
    rng: np.random.Generator, size: Size, course: int, length: int, uneven: float = 0.3
) -> tuple[Field, Field]:
    """Lay blocks `course` high and about `length` long.

    Returns a tone in -1..1 that is one for each block, and the distance to the nearest joint.
    """
    rows, columns = size
    courses = -(-rows // course)
    tone = np.empty((courses, columns), np.float32)
    beside = np.empty((courses, columns), np.float32)
    x = np.arange(columns, dtype=np.float32) + np.float32(0.5)
    blocks = columns // length + 3
    for index in range(courses):
        widths = length * rng.uniform(1 - uneven, 1 + uneven, blocks + blocks // 2)
        joints = np.cumsum(widths) - length * rng.uniform(1, 2)
        block = np.searchsorted(joints, x)
        left, right = joints[np.maximum(block - 1, 0)], joints[block]
        beside[index] = np.minimum(x - left, right - x)
        tone[index] = rng.uniform(-1, 1, len(joints) + 1)[block]
    y = (np.arange(rows, dtype=np.float32) + np.float32(0.5)) % course
    above = np.minimum(y, course - y)[:, None]
    edge = np.minimum(np.repeat(beside, course, axis=0)[:rows], above)
    return np.repeat(tone, course, axis=0)[:rows], edge.clip(0)


def receding(texture: Field, size: Size, depth: float = 3.0) -> Field:
    """See a texture as a floor: its far edge is the first row, `depth` times as far as the last.

    The values must lie in 0..1; so do those returned.
    """
    rows, columns = size
    height, width = texture.shape
    near = rows / (depth - 1)  # what is added to a row's number for its share of the distance
    reach = height / (1 / near - 1 / (rows + near))
    far = reach / near
    scale = width * near / columns
    middle = columns / 2
    coefficients = (
        scale / near,
        width / 2 / near,
        (width / 2 * near - scale * middle) / near,
        0.0,
        far / near,
        (far * near - reach) / near,
        0.0,
        1 / near,
    )
    flat = as_mask(texture)
    seen = flat.transform(
        (columns, rows), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(seen, np.float32) / np.float32(255)
