"""diffusers' JSON files, read key by key: what has no counterpart here is refused by name."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from cascade.errors import UserError
from cascade.files import read_json


class Settings:
    """What a configuration file of diffusers' holds.

    Attributes:
        values: its keys and values; keys with a leading underscore are notes.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self._source = source

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            UserError: it is missing or damaged.
        """
        return cls(read_json(path), str(path))

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value, or what diffusers takes in its absence."""
        return self.values.get(key, default)

    def need(self, key: str, kind: type) -> Any:
        """The value of a key that must be there.

        Raises:
            UserError: it is absent, or of another type.
        """
        if not isinstance(self.values.get(key), kind):
            raise self.refusal(key, f"a value of type {kind.__name__}")
        return self.values[key]

    def listed(self, key: str, kind: type) -> list[Any]:
        """The value of a key that must hold a list of one type, of at least one value.

        Raises:
            UserError: it holds something else.
        """
        held = self.need(key, list)
        if not held or any(type(value) is not kind for value in held):
            raise self.refusal(key, f"a list of values of type {kind.__name__}")
        return list(held)

    def factor(self, key: str) -> float:
        """The value of a key that must hold a positive number; 1, as diffusers has it, if absent.

        Raises:
            UserError: it holds something else.
        """
        held = self.values.get(key, 1.0)
        if type(held) not in (int, float) or not 0 < held < math.inf:
            raise self.refusal(key, "a positive number")
        return float(held)

    def one_of(self, key: str, default: Any, *allowed: Any, mend: str = "") -> Any:
        """A key's value, which has to be one of those that ours stands for.

        Args:
            key: which.
            default: what diffusers takes in its absence.
            allowed: those.
            mend: what to do about another, for the error's sentence.

        Raises:
            UserError: it is another.
        """
        value = self.values.get(key, default)
        if value not in allowed:
            raise self.refusal(key, " or ".join(repr(option) for option in allowed), mend)
        return value

    def only(self, known: Collection[str]) -> None:
        """Make sure that there is no key but these.

        Raises:
            UserError: there is one, and its value would be ignored.
        """
        for key in self.values:
            if key not in known and not key.startswith("_"):
                raise self.refusal(key, "no such key")

    def refusal(self, key: str, wanted: str, mend: str = "") -> UserError:
        """The error that a key's value deserves."""
        held = repr(self.values[key]) if key in self.values else "absent"
        return UserError(
            f"In {self._source} '{key}' is {held}; of checkpoints of DeepFloyd IF's kind this "
            f"project reads {wanted}{'; ' if mend else ''}{mend}."
        )
