"""Captions in files: text, JSON lines, or a folder of captioned pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cascade.errors import UserError

CAPTION_FIELDS: Final = ("caption", "captions", "text")
"""Of objects in JSON, the first that is there."""


def read_captions(path: Path) -> Iterator[str]:
    """Yield the captions of a file, or of a dataset's folder.

    Args:
        path: a text file with a caption per line; a `.jsonl` file whose lines are captions, lists
            of them, or objects with one of the fields caption, captions, text; or a folder with
            such a file named `captions.jsonl`.
    """
    file = path / "captions.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"There are no captions at {file}; give a text file, a .jsonl file, or a folder with "
            "captions.jsonl."
        )
    empty = True
    with file.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                empty = False
                if file.suffix == ".jsonl":
                    yield from parse_captions(file, number, line)
                else:
                    yield line.strip()
        except UnicodeDecodeError:
            raise UserError(f"{file} is not UTF-8 text; save it as UTF-8.") from None
    if empty:
        raise UserError(f"{file} holds no captions; write one per line.")


def parse_captions(file: Path, number: int, line: str) -> tuple[str, ...]:
    """Parse a line of a `.jsonl` file: one caption, or equally good ones of a picture."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        value = next((value[field] for field in CAPTION_FIELDS if field in value), None)
    captions = [value] if isinstance(value, str) else value
    listed = isinstance(captions, list) and captions
    if not listed or not all(isinstance(text, str) for text in captions):
        raise UserError(
            f"Line {number} of {file} holds no caption; write a JSON string, a list of strings, or "
            f"an object with one of the fields {', '.join(CAPTION_FIELDS)}."
        )
    return tuple(captions)
