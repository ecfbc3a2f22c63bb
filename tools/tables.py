"""Figures as text and as Markdown tables; a figure that is not known is a dash."""

from collections.abc import Iterable, Sequence
from statistics import fmean

DASH = "\N{EN DASH}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def percent(share: float | None) -> str:
    """A share of a hundred, without decimals."""
    return DASH if share is None else f"{share:.0f} %"


def whole(value: float | None) -> str:
    """A figure without decimals."""
    return DASH if value is None else f"{value:.0f}"
