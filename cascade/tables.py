"""Tables of figures: as Markdown, or on the page of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

DASH: Final = "\N{EN DASH}"

Value: TypeAlias = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Figures in rows.

    Attributes:
        head: the columns' names, with their units.
        rows: one value per column; see `shown`.
        note: how to read it, below the table.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Value]]
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse a row that has not one value per column."""
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"a row of {len(row)} values under {len(self.head)} columns")

    def markdown(self) -> str:
        """Write the table as Markdown, with its note below it."""
        rows = [self.head, ["---"] * len(self.head), *([shown(v) for v in r] for r in self.rows)]
        lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        return f"{lines}\n{self.note}\n" if self.note else lines


def explained(functions: Mapping[str, object]) -> str:
    """Say what columns mean, by the docstrings of what gives them; equal ones once."""
    names: dict[str, list[str]] = {}
    for name, function in functions.items():
        names.setdefault(function.__doc__ or "", []).append(name)
    return " ".join(f"{', '.join(of)}: {told}" for told, of in names.items())


def shown(value: Value) -> str:
    """Write a number with four significant digits, and what is not known as a dash."""
    if value is None:
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_number(value: Value) -> bool:
    """Tell figures, which stand flush right, from words."""
    return isinstance(value, int | float)
