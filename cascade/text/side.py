"""Prompts that name a side, which a mirrored picture would belie."""

import re
from typing import Final

_SIDE: Final = re.compile(r"\b(left|right)(most|hand|ward|wards)?\b", re.IGNORECASE)


def names_side(prompt: str | None) -> bool:
    """Whether a prompt says what is on the left or on the right."""
    return prompt is not None and _SIDE.search(prompt) is not None
