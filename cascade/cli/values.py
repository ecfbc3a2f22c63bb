"""Kinds of values that flags take: parsers for Typer, which name the flag in their refusal."""

from pathlib import Path

import typer


def name(text: str) -> str:
    """A name or a path, as written: an empty one is the trace of a variable that is not set."""
    if not text.strip():
        raise typer.BadParameter("It is empty; give a name, or leave the flag out.")
    return text


def path(text: str | Path) -> Path:
    """A path: an empty one would be the current folder."""
    return Path(name(str(text)))
