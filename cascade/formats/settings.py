"""Reading of diffusers' JSON files key by key; what has no counterpart is refused by name."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from cascade.errors import UserError
from cascade.files import read_json


class Settings:
    """A configuration file of diffusers'.

    Attributes:
        values: its keys and values; keys with a leading underscore are notes.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self._source = source

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file."""
        return cls(read_json(path), str(path))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a key's value, or what diffusers takes in its absence."""
        return self.values.get(key, default)

    def need(self, key: str, kind: type) -> Any:
        """Return the value of a key that must be there."""
        if not isinstance(self.values.get(key), kind):
            raise self.refusal(key, f"a value of type {kind.__name__}")
        return self.values[key]

    def listed(self, key: str, kind: type) -> list[Any]:
        """Return the value of a key that must hold a list of one type, of at least one value."""
        values = self.need(key, list)
        if not values or any(type(value) is not kind for value in values):
            raise self.refusal(key, f"a list of values of type {kind.__name__}")
        return list(values)

    def factor(self, key: str) -> float:
        """Return the value of a key that must hold a positive number; diffusers' 1 if absent."""
        value = self.values.get(key, 1.0)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.refusal(key, "a positive number")
        return float(value)

    def one_of(self, key: str, default: Any, *allowed: Any, mend: str = "") -> Any:
        """Return a key's value, which has to be one of those that ours stands for.

        Args:
            mend: what to do about another, for the error's sentence.
        """
        value = self.values.get(key, default)
        if value not in allowed:
            raise self.refusal(key, " or ".join(repr(option) for option in allowed), mend)
        return value

    def only(self, known: Collection[str]) -> None:
        """Check that there is no key but these."""
        for key in self.values:
            if key not in known and not key.startswith("_"):
                raise self.refusal(key, "no such key")

    def refusal(self, key: str, wanted: str, mend: str = "") -> UserError:
        """Return the error for a value that has no counterpart."""
        value = repr(self.values[key]) if key in self.values else "absent"
        return UserError(
            f"In {self._source} '{key}' is {value}; of checkpoints of DeepFloyd IF's kind this "
            f"project reads {wanted}{'; ' if mend else ''}{mend}."
        )
