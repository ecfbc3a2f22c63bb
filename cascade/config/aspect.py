"""Aspect ratios of pictures."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

Aspect = tuple[Annotated[int, Field(strict=True, gt=0)], Annotated[int, Field(strict=True, gt=0)]]
"""Width to height, as 3:2."""

SQUARE: Final[Aspect] = (1, 1)

_MOST: Final = 4  # times as long as wide: beyond, a base is a strip of a few tokens
_WRITTEN: Final = re.compile(r"0*([1-9][0-9]{0,8}):0*([1-9][0-9]{0,8})")


def read_aspect(text: str) -> Aspect:
    """Return the aspect ratio that is written as 3:2.

    Raises:
        ValueError: it is not two positive whole numbers, or beyond 1:4 or 4:1.
    """
    written = _WRITTEN.fullmatch(text)
    if written is not None:
        width, height = int(written[1]), int(written[2])
        if max(width, height) <= _MOST * min(width, height):
            return width, height
    raise ValueError(
        "must be two positive whole numbers, width to height, such as 3:2, from "
        f"1:{_MOST} to {_MOST}:1, not {text!r}"
    )


def _checked(text: str) -> str:
    read_aspect(text)
    return text


AspectText = Annotated[str, AfterValidator(_checked)]
"""An aspect ratio as people write it."""
