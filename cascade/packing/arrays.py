"""Pictures of the array data set: `images.npy` (uint8, N 3 S S) and `captions.jsonl`."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cascade.data.array import CAPTIONS, IMAGES
from cascade.errors import UserError
from cascade.packing.files import Files, Unreadable
from cascade.packing.plan import Part, PlanWriter
from cascade.packing.records import Found
from cascade.text.captions import parse_captions


def plan_array(folder: Files, name: str, plan: PlanWriter) -> None:
    """Cut an array data set into ranges of its pictures."""
    shape, _ = _shape(folder)
    size, licence = math.prod(shape[1:]), _licence(folder)
    number = 0
    with folder.inside(CAPTIONS).open() as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig"), start=1):
            if number == 1 or not plan.has_room(size):
                plan.part("array", folder.address, name, first=number - 1)
            captions = parse_captions(Path(folder.inside(CAPTIONS).address), number, line)
            plan.record({"captions": captions, "licence": licence}, size)
    if number != shape[0]:
        raise UserError(
            f"{name} has {shape[0]} pictures but {number} lines of captions; write one line of "
            "captions per picture."
        )


def read_array(part: Part, rows: Iterator[Any]) -> Iterator[Found]:
    """Yield the records of a range of pictures, each as a PNG."""
    folder = Files(part.address)
    shape, start = _shape(folder)
    size = math.prod(shape[1:])
    with folder.inside(IMAGES).open() as stream:
        stream.seek(start + part.first * size)
        for number, row in enumerate(rows, start=part.first):
            pixels = np.frombuffer(stream.read(size), np.uint8).reshape(shape[1:])
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG")
            yield Found(f"{part.name}/{IMAGES}#{number}", buffer.getvalue(), (row,))


def _shape(folder: Files) -> tuple[tuple[int, ...], int]:
    """Return the array's shape, and where in the file it begins."""
    name = folder.inside(IMAGES).address
    with folder.inside(IMAGES).open() as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, kind = read(stream)
        except ValueError as error:
            raise UserError(f"{name} cannot be read ({error}); make the dataset again.") from None
        if kind != np.uint8 or len(shape) != 4 or shape[1] != 3 or fortran:
            raise UserError(
                f"{name} holds {kind} of shape {shape}; it must be uint8 of shape N 3 S S."
            )
        return tuple(shape), stream.tell()


def _licence(folder: Files) -> str:
    try:
        about = json.loads(folder.inside("dataset.json").read())
    except (Unreadable, ValueError):
        return ""
    licence = about.get("licence", "") if isinstance(about, dict) else ""
    return licence if isinstance(licence, str) else ""
