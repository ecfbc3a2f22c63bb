"""The pictures that a run is scored on and not trained on: the same rows in every run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from cascade.config.data import DataConfig, DataSetConfig, RowConfig
from cascade.config.train import HELD_OUT_ROWS, ValidationConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.choosing import choose_plainly
from cascade.data.opening import held_out_split, open_sources, place_of
from cascade.data.packed import Packed
from cascade.data.source import Source
from cascade.errors import UserError

_SEED: Final = 0  # not the run's: runs are compared on the same rows with the same noise


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of a stage, in middle crops and with their first captions.

    Attributes:
        samples: all that there are, mixed as in training.
        count: of the rows that are scored, at the first positions.
    """

    samples: CaptionedSamples
    count: int

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The captions of the rows."""
        chosen = self.samples.decide(range(self.count))
        return tuple(choice.prompt for choice in chosen if choice.prompt is not None)


def open_held_out(
    validation: ValidationConfig, data: DataConfig, training: CaptionedSamples
) -> HeldOut | None:
    """Open the held-out pictures of what is trained on, or others; None where none are scored.

    Raises:
        UserError: a number is given and there are none, or they are those that are trained on.
    """
    if validation.loss_rows == 0:
        return None
    if validation.data is not None:
        samples = _named(validation.data, data, training)
    else:
        samples = _samples(training, _held_out_of(training))
    if samples.sources:
        return HeldOut(samples, min(validation.loss_rows or HELD_OUT_ROWS, len(samples)))
    if validation.loss_rows is not None:
        raise UserError(
            f"validation.loss_rows is {validation.loss_rows} and the data hold no pictures out; "
            "pack them again with --held-out, name others in validation.data, or leave it out."
        )
    return None


def _held_out_of(training: CaptionedSamples) -> Iterator[Source]:
    for source in training.sources:
        held = source.data.of_split("validation") if isinstance(source.data, Packed) else None
        if held is not None:
            yield replace(source, data=held)


def _named(address: str, data: DataConfig, training: CaptionedSamples) -> CaptionedSamples:
    split = held_out_split(place_of(data, address))
    sources = open_sources(data, DataSetConfig(folder=address), training.stage, split)
    samples = _samples(training, sources)
    trained_on = {source.data.digest() for source in training.sources}
    if any(source.data.digest() in trained_on for source in samples.sources):
        raise UserError(
            f"The pictures of {address} are those that are trained on; name others in "
            "validation.data, or leave it out."
        )
    return samples


def _samples(training: CaptionedSamples, sources: Iterator[Source]) -> CaptionedSamples:
    rows = RowConfig(caption_dropout=0.0, flip=False)
    return CaptionedSamples(tuple(sources), training.stage, _SEED, rows, chooser=choose_plainly)
