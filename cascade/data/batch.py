"""What the training loop eats: batches, and the streams they come from.

Shapes: `B` rows, `C H W` pixels; pictures in [-1, 1].

A *position* is a place in the endless stream of training samples. Everything random about a row
(which sample, its flip, its dropped caption, its timestep and noise) is a function of the run's
seed and the position, so a run can stop and go on anywhere, on any number of processes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from cascade.diffusion.noise import to_device


@dataclass(frozen=True)
class Batch:
    """Rows of pictures with their captions, weights and noise seeds.

    Attributes:
        images: B C H W, the pictures the stage is to make.
        low_res: B C h w, their clean low-resolution twins, or None for a base stage.
        prompts: B captions; None is the unconditional text.
        seeds: B seeds of each row's timestep and noise.
        weights: B, the factor of each row's loss; prior preservation is a weight.
        terms: B names of the loss term a row belongs to, for the report.
        positions: how many positions of the stream the rows stand for.
        pixel_weights: B 1 H W, the factor of each pixel's loss, about 1 on average; None is 1.
    """

    images: Tensor
    low_res: Tensor | None
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]
    weights: Tensor
    terms: tuple[str, ...]
    positions: int
    pixel_weights: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same rows on another device; see `to_device`."""
        return replace(
            self,
            images=to_device(self.images, device),
            low_res=None if self.low_res is None else to_device(self.low_res, device),
            weights=to_device(self.weights, device),
            pixel_weights=(
                None if self.pixel_weights is None else to_device(self.pixel_weights, device)
            ),
        )


def concatenate(first: Batch, second: Batch) -> Batch:
    """Put two kinds of rows of the same positions into one batch (instance and prior rows)."""
    low_res = None
    if first.low_res is not None and second.low_res is not None:
        low_res = torch.cat([first.low_res, second.low_res])
    return Batch(
        images=torch.cat([first.images, second.images]),
        low_res=low_res,
        prompts=first.prompts + second.prompts,
        seeds=first.seeds + second.seeds,
        weights=torch.cat([first.weights, second.weights]),
        terms=first.terms + second.terms,
        positions=first.positions,
        pixel_weights=_both_weights(first, second),
    )


def _both_weights(first: Batch, second: Batch) -> Tensor | None:
    if first.pixel_weights is None and second.pixel_weights is None:
        return None
    parts = [
        torch.ones_like(batch.images[:, :1]) if batch.pixel_weights is None else batch.pixel_weights
        for batch in (first, second)
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class Share:
    """Which part of each global batch this process works on.

    A global batch of `batch_size` positions is cut into `accumulation * world` micro-batches; the
    process takes every `world`-th of them.
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def micro_batch(self) -> int:
        """Positions in one micro-batch."""
        return self.batch_size // (self.accumulation * self.world_size)

    def positions(self, start: int, turn: int) -> range:
        """The positions of this process's `turn`-th micro-batch of the batch at `start`."""
        first = start + (turn * self.world_size + self.rank) * self.micro_batch
        return range(first, first + self.micro_batch)


class Samples(Protocol):
    """A source with random access: rows as a pure function of their positions."""

    def rows(self, positions: Sequence[int]) -> Batch:
        """The rows at these positions of the stream."""
        ...


class Stream(Protocol):
    """An endless source of micro-batches that can start at any position."""

    def batches(self, start: int, share: Share) -> Iterator[Batch]:
        """This process's micro-batches from the global batch at `start` on, in order."""
        ...


@dataclass(frozen=True)
class Prefetched:
    """A stream over `samples` that prepares the next micro-batch while one is worked on."""

    samples: Samples

    def batches(self, start: int, share: Share) -> Iterator[Batch]:
        """See `Stream.batches`."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            places = _places(start, share)
            pending = pool.submit(self.samples.rows, next(places))
            while True:
                batch = pending.result()
                pending = pool.submit(self.samples.rows, next(places))
                yield batch


@dataclass(frozen=True)
class Immediate:
    """A stream over `samples` whose rows are there at once, since a device gathers them."""

    samples: Samples

    def batches(self, start: int, share: Share) -> Iterator[Batch]:
        """See `Stream.batches`."""
        return map(self.samples.rows, _places(start, share))


def _places(start: int, share: Share) -> Iterator[range]:
    while True:
        for turn in range(share.accumulation):
            yield share.positions(start, turn)
        start += share.batch_size
