"""Object boxes: left, top, right, bottom in pixels, both ends included."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Box: TypeAlias = tuple[int, int, int, int]


def area(box: Box) -> int:
    """Pixels inside a box."""
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def mask_box(inside: NDArray[np.bool_]) -> Box:
    """The smallest box around the true pixels of a mask, H W, that has some."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    common = max(width, 0) * max(height, 0)
    return common / (area(first) + area(second) - common)
