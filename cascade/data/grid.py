"""A labelled sheet of pictures: what each row and column is stands beside it.

Shapes: `C H W` channels, rows, columns; values in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cascade.data.images import to_pil

Picture: TypeAlias = Image.Image | Tensor | None
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_INK, _FAINT, _EMPTY = (28, 30, 34), (104, 110, 120), (236, 238, 241)


@dataclass(frozen=True)
class _Text:
    """Wrapped text and the room it takes, pixels."""

    lines: tuple[str, ...]
    width: int
    height: int


def image_grid(
    rows: Sequence[Sequence[Picture]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    cell: int = 192,
    gap: int = 8,
    text_size: int = 14,
) -> Image.Image:
    """Lay pictures out in labelled rows and columns on white.

    Args:
        rows: Pillow images, tensors `C H W` in [-1, 1], or None for an empty place; rows may have
            different lengths and pictures different sizes.
        row_labels: one per row, left of it; or none at all.
        column_labels: one per column, above it; or none at all.
        captions: one per picture, below it, in the shape of `rows`; or none at all.
        cell: side of the square that each picture fills, pixels. A whole multiple of the picture's
            side repeats its pixels instead of interpolating them: a sheet that compares stages
            must not invent the detail which a stage lacks.
        gap: white between pictures, pixels.
        text_size: height of the letters, pixels.

    Raises:
        ValueError: no picture, or labels that do not match the pictures.
    """
    columns = max((len(row) for row in rows), default=0)
    _check(rows, columns, row_labels, column_labels, captions)
    font = ImageFont.load_default(text_size)
    heads = [_wrap(label, cell, font) for label in column_labels]
    sides = [_wrap(label, cell, font) for label in row_labels]
    notes = [[_wrap(caption, cell, font) for caption in row] for row in captions]

    left = gap + (max(side.width for side in sides) + gap if sides else 0)
    top = gap + (max(head.height for head in heads) + gap // 2 if heads else 0)
    feet = [max((note.height for note in row), default=0) for row in notes] or [0] * len(rows)
    width = left + columns * (cell + gap)
    height = top + sum(cell + foot + gap for foot in feet)

    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for j, head in enumerate(heads):
        x = left + j * (cell + gap) + (cell - head.width) // 2
        _write(draw, head, (x, top - gap // 2 - head.height), font, _INK)
    y = top
    for i, row in enumerate(rows):
        if sides:
            _write(draw, sides[i], (gap, y + (cell - sides[i].height) // 2), font, _INK)
        for j, picture in enumerate(row):
            x = left + j * (cell + gap)
            sheet.paste(_fit(picture, cell), (x, y))
            if notes:
                _write(draw, notes[i][j], (x, y + cell + gap // 4), font, _FAINT)
        y += cell + feet[i] + gap
    return sheet


def _check(
    rows: Sequence[Sequence[Picture]],
    columns: int,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    captions: Sequence[Sequence[str]],
) -> None:
    if columns == 0:
        raise ValueError("a grid needs at least one picture")
    if row_labels and len(row_labels) != len(rows):
        raise ValueError(f"{len(row_labels)} row labels for {len(rows)} rows")
    if column_labels and len(column_labels) != columns:
        raise ValueError(f"{len(column_labels)} column labels for {columns} columns")
    if captions and [len(row) for row in captions] != [len(row) for row in rows]:
        raise ValueError("captions must have the shape of the rows")


def _fit(picture: Picture, cell: int) -> Image.Image:
    """Return the picture scaled into a `cell` square, centred on pale grey."""
    place = Image.new("RGB", (cell, cell), _EMPTY)
    if picture is None:
        return place
    image = to_pil(picture[None])[0] if isinstance(picture, Tensor) else picture.convert("RGB")
    longest = max(image.size)
    size = (max(1, image.width * cell // longest), max(1, image.height * cell // longest))
    whole = cell % longest == 0
    image = image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
    place.paste(image, ((cell - size[0]) // 2, (cell - size[1]) // 2))
    return place


def _wrap(text: str, width: int, font: Font) -> _Text:
    """Break text at spaces into lines of at most `width` pixels; cut a word that is longer."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut(word, width, font))
    widest = max((font.getlength(line) for line in lines), default=0)
    return _Text(tuple(lines), round(widest), len(lines) * _line_height(font))


def _cut(word: str, width: int, font: Font) -> str:
    if font.getlength(word) <= width:
        return word
    while word and font.getlength(word + "...") > width:
        word = word[:-1]
    return word + "..."


def _write(
    draw: ImageDraw.ImageDraw,
    text: _Text,
    corner: tuple[int, int],
    font: Font,
    colour: tuple[int, int, int],
) -> None:
    for i, line in enumerate(text.lines):
        draw.text((corner[0], corner[1] + i * _line_height(font)), line, fill=colour, font=font)


def _line_height(font: Font) -> int:
    return round(1.25 * (font.getbbox("Ag")[3]))
