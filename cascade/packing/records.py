"""What sources say of a picture: captions, numbers, a licence, where it is from."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cascade.config.pack import PackConfig
from cascade.data.pack import COLUMNS, Note
from cascade.errors import UserError
from cascade.text.captions import CAPTION_FIELDS

MOST_BYTES: Final = 2**28
"""Of a picture's file: what is larger is not read."""

BESIDE: Final = ("txt", "json", "cls")
"""Endings of what is read beside a picture: its captions, all about it, its class."""

FOREIGN: Final = "a kind of picture that cannot be read here"
TOO_LARGE: Final = "a file that is too large"
"""Reasons that several kinds of sources give."""

_LICENCE: Final = ("licence", "license")
_SOURCE: Final = ("source", "url")
_CLASS: Final = ("cls", "label")
_LONGEST: Final = 8  # letters of an ending
_NUMBERS: Final = "numbers"  # of a pack's own notes

Row = Mapping[str, Any]


class Refused(Exception):
    """A record that is left out.

    Attributes:
        reason: in the words that are counted.
        detail: more of it, for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class LeftOut:
    """A record, or a part of a source, that is left out; see `Refused`."""

    source: str
    reason: str
    detail: str = ""

    def dump(self) -> str:
        """Return its line of the quarantine."""
        told = f"{self.reason}: {self.detail}" if self.detail else self.reason
        return json.dumps({"source": self.source, "reason": told}, ensure_ascii=True) + "\n"


@dataclass(frozen=True)
class Found:
    """A picture as a source has it.

    Attributes:
        source: where it is, for people.
        picture: its file.
        rows: what tables and JSON say of it: several rows have equally good captions, and the
            first one everything else.
        text: captions, one a line.
        label: its class, a number or a name.
    """

    source: str
    picture: bytes
    rows: tuple[Row, ...] = ()
    text: bytes | None = None
    label: bytes | None = None


def kind_of(name: str) -> str:
    """Return the ending by which files that are not taken over are counted."""
    ending = name.lower().rpartition(".")[2]
    return ending if ending.isalnum() and len(ending) <= _LONGEST else "other"


def row_of_json(data: bytes) -> Row:
    """Parse JSON beside a picture; what is no object is captions."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused("its JSON cannot be read") from None
    return value if isinstance(value, dict) else {"captions": value}


def note_of(found: Found, config: PackConfig, class_names: Sequence[str]) -> Note:
    """Return what is known of a picture beside its pixels.

    Raises:
        Refused: it has no caption.
        UserError: its class is a number, and nobody gave the names.
    """
    rows = [{str(name).casefold(): value for name, value in row.items()} for row in found.rows]
    first = rows[0] if rows else {}
    captions = _captions(found, rows, config)
    if not captions:
        captions = _of_class(found, first, config, class_names)
    if not captions:
        raise Refused("no caption")
    return Note(
        captions=captions,
        licence=_text(first, _LICENCE),
        source=_text(first, _SOURCE) or _clean(found.source),
        numbers=_numbers(found.rows[0]) if found.rows else {},
    )


def _captions(found: Found, rows: Sequence[Row], config: PackConfig) -> tuple[str, ...]:
    """Return the captions of whoever says some: the field asked for, the text, other fields."""
    if config.caption_column is not None:
        return _unique(text for row in rows for text in _texts(row, config.caption_column))
    if found.text is not None:
        try:
            lines = found.text.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise Refused("its caption is not UTF-8 text") from None
        if any(line.strip() for line in lines):
            return _unique(iter(lines))
    for field in CAPTION_FIELDS:
        captions = _unique(text for row in rows for text in _texts(row, field))
        if captions:
            return captions
    return ()


def _texts(row: Row, field: str) -> Iterator[str]:
    value = row.get(field.casefold())
    values = value if isinstance(value, list | tuple) else [value]
    yield from (text for text in values if isinstance(text, str))


def _unique(texts: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (_clean(text) for text in texts))))


def _clean(text: str) -> str:
    """Return a text without blanks around it, and without halves of characters."""
    return text.encode("utf-8", "replace").decode().strip()


def _of_class(
    found: Found, row: Row, config: PackConfig, class_names: Sequence[str]
) -> tuple[str, ...]:
    """Make a caption of a picture's class."""
    if found.label is not None:
        label = found.label.decode("utf-8", "replace").strip()
    else:
        label = next((str(row[name]).strip() for name in _CLASS if row.get(name) is not None), "")
    if not label or config.caption_column is not None:
        return ()
    if label.removeprefix("-").isdecimal():
        if config.class_names is None:
            if found.label is None:  # some number of a table
                return ()
            raise UserError(
                f"{found.source} has the number of a class ({label}) and no caption; give the "
                "classes' names with --class-names."
            )
        if not 0 <= int(label) < len(class_names):
            raise Refused("a class without a name", label)
        label = class_names[int(label)]
    return (config.class_caption.replace("{}", _clean(label)),)


def _text(row: Row, names: Sequence[str]) -> str:
    return next((_clean(value) for name in names if isinstance(value := row.get(name), str)), "")


def _numbers(row: Row) -> dict[str, float]:
    """Return the numbers of a row, but for those that an index has anyway."""
    inner = row.get(_NUMBERS)
    known = {**row, **inner} if isinstance(inner, Mapping) else row
    found = {}
    for name, value in known.items():
        if isinstance(value, int | float) and _clean(name) and name.casefold() not in COLUMNS:
            try:
                number = float(value)
            except OverflowError:
                continue
            if math.isfinite(number):
                found[_clean(name)] = number
    return dict(sorted(found.items()))
