"""The list of things that the world is made of, `concepts.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sprites import Head, Style

CONCEPTS: Final = Path(__file__).with_name("concepts.toml")


@dataclass(frozen=True)
class Thing:
    """A thing that is to become one concept."""

    name: str
    nouns: tuple[str, ...]
    emoji: tuple[str, ...]
    photos: tuple[int, ...]  # rows of the photo pack


@dataclass(frozen=True)
class World:
    """All things, what can be set on heads, and where the heads are."""

    things: tuple[Thing, ...]
    accessories: Mapping[str, str]  # name: emoji
    heads: Mapping[str, Mapping[Style, Head]]  # by emoji


def read_world(path: Path = CONCEPTS) -> World:
    """Read the list; a key that it lacks or should not have is an error of the list."""
    with path.open("rb") as file:
        found = tomllib.load(file)
    things = tuple(
        Thing(
            name,
            tuple(entry["nouns"]),
            tuple(entry.get("emoji", ())),
            tuple(entry.get("photos", ())),
        )
        for name, entry in found["concepts"].items()
    )
    heads = {
        emoji: {style: Head(*numbers) for style, numbers in styles.items()}
        for emoji, styles in found.get("heads", {}).items()
    }
    return World(things, found["accessories"], heads)
