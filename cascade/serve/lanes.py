"""Which pictures share a call of a network."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from cascade.config.serve import BatchConfig
from cascade.drawing import answers
from cascade.serve.picture import Picture


def sharing(drawing: Sequence[Picture], batch: BatchConfig, most: int) -> list[Picture]:
    """Return who makes the next call: the first, and those after it that fit; `most` in all."""
    if not drawing:
        return []
    first, *others = drawing
    chosen, rows = [first], first.drawing.rows
    if batch.mode == "exact" and not first.loaded.exact:
        return chosen
    for other in others:
        fits = len(chosen) < most and rows + other.drawing.rows <= batch.rows
        if fits and other.lane == first.lane:
            chosen.append(other)
            rows += other.drawing.rows
    return chosen


def filled(batch: BatchConfig) -> int | None:
    """Return up to how many rows calls are filled."""
    return batch.rows if batch.mode == "padded" else None


def row_counts(batch: BatchConfig, exact: bool) -> Iterable[int]:
    """Return how many rows a call can have; a picture has two under guidance, else one."""
    if batch.mode == "padded":
        return sorted({batch.rows, max(batch.rows, 2)})
    if batch.mode == "exact" and not exact:
        return (1, 2)
    return range(1, max(2, min(batch.rows, 2 * batch.at_once)) + 1)


def ask(pictures: Sequence[Picture], rows: int | None) -> Sequence[Tensor | Exception]:
    """Call the network, and return what each is answered, or what went wrong for it.

    Where it fails for all, each asks alone, so that only those fail that it is due to.
    """
    try:
        return answers([each.drawing for each in pictures], rows)
    except Exception as error:  # noqa: BLE001  an engine's own; it is told to whom it concerns
        if len(pictures) == 1:
            return [error]
    return [ask([each], rows)[0] for each in pictures]
