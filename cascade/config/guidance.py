"""Where on the way from noise to an image there is guidance."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field


def _read(given: Any) -> Any:
    """Read `0.5,100`; what is no text stays as it is."""
    if not isinstance(given, str):
        return given
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError:
        raise ValueError(f"{given!r} is no interval; write it as in 0.5,100") from None


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError("an interval must rise, as in 0.5,100")
    return value


_Level = Annotated[float, Field(strict=True, ge=0.0, le=1e9)]

Interval = Annotated[tuple[_Level, _Level], BeforeValidator(_read), AfterValidator(_rising)]
"""Noise levels sigma, low and high; as a text, low,high."""
