"""Kinds of values that flags take: parsers for Typer, which refuse a wrong one before any work.

Nothing here imports torch: a mistyped path is answered at once.
"""

from pathlib import Path
from typing import Any, Final, TypeVar

import typer

from cascade.config.folders import cascade_folder
from cascade.data.place import is_address
from cascade.errors import UserError
from cascade.files import require_writable

_T = TypeVar("_T")

OUTPUT: Final = ("--output", "--output-dir", "-o")
"""Spellings of the flag that says where files go; the second is diffusers'."""


def name(text: str) -> str:
    """Parse a name or other words, as written."""
    try:
        text.encode()
    except UnicodeEncodeError:  # what a console of another encoding has sent
        raise typer.BadParameter("It has bytes that are no text; give it in UTF-8.") from None
    return _given(text)


def path(text: str | Path) -> Path:
    """Parse a path: an empty one would be the current folder."""
    return Path(_given(str(text)))


def folder(text: str | Path) -> Path:
    """Parse an existing folder."""
    found = path(text)
    if not found.is_dir():
        raise UserError(f"There is no folder {found}; check the path.")
    return found


def writable(text: str | Path) -> Path:
    """Parse a folder that can be written into, made if need be."""
    found = path(text)
    require_writable(found)
    return found


def _given(text: str) -> str:
    """Refuse an empty value: the trace of a shell variable that is not set."""
    if not text.strip():
        raise typer.BadParameter("It is empty; give a name, or leave the flag out.")
    return text


def existing(text: str | Path) -> Path:
    """Parse an existing file or folder."""
    found = path(text)
    if not found.exists():
        raise UserError(f"There is no file {found}; check the path.")
    return found


def place(text: str) -> str:
    """Parse the place of a data set: an existing folder, or an address of an object store."""
    return text if is_address(text) else str(folder(text))


def cascade(text: str) -> str:
    """Parse a cascade's folder, or the name of one that ships with the project."""
    cascade_folder(_given(text))
    return text


def named(text: str) -> tuple[str | None, str]:
    """Split NAME=FOLDER, or a folder alone, which may have such a name itself."""
    name, separator, place = text.partition("=")
    return (name, place) if separator and not Path(text).is_dir() else (None, text)


def named_cascade(text: str) -> str:
    """Parse a cascade, or a bundle, that may be given a name: NAME=FOLDER."""
    cascade(named(_given(text))[1])
    return text


def named_folder(text: str) -> str:
    """Parse an existing folder that may be given a name: NAME=FOLDER."""
    folder(named(_given(text))[1])
    return text


def either(argument: _T | None, option: _T | None, what: str) -> _T:
    """Return what a command was given as its argument or by a flag."""
    given = [value for value in (argument, option) if value is not None]
    if len(given) != 1:
        raise UserError(f"Give one {what}, as {what.upper()} or as --{what}.")
    return given[0]


def output(told: str) -> Any:
    """Return the option that says where files go."""
    return typer.Option(*OUTPUT, parser=writable, metavar="FOLDER", help=told)


def comma_separated(text: str) -> tuple[str, ...]:
    """Split a flag's value; an empty one has no parts."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def numbers(text: str) -> Any:
    """Parse integers, as in 1,2,4; what is none is left to the setting to refuse."""
    words = [word.strip() for word in text.split(",")]
    return [int(word) if word.isdecimal() else word for word in words]


def decimals(text: str) -> Any:
    """Parse numbers, as in 0.5,1,2; what is none is left to the setting to refuse."""

    def read(word: str) -> Any:
        try:
            return float(word)
        except ValueError:
            return word

    return [read(word.strip()) for word in text.split(",")]
