"""Positions of the stream: each is worked on once, in order, by whoever's turn it is."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascade.data.batch import Batch, concatenate
from cascade.data.stream import RankSlice, Stream
from cascade.text.packed import PackedTexts


def batch_of(positions: Sequence[int], term: str = "mse", weight: float = 1.0) -> Batch:
    count = len(positions)
    return Batch(
        images=torch.tensor(positions).float().view(count, 1, 1, 1),
        low_res=torch.zeros(count, 1, 1, 1),
        prompts=tuple(f"{term} {p}" for p in positions),
        seeds=tuple(positions),
        weights=torch.full((count,), weight),
        terms=(term,) * count,
        positions=count,
    )


@dataclass
class Counting:
    """Rows that say which they are; notes what was asked for, and by which thread."""

    asked: list[range] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    fails_at: int = -1

    def rows(self, positions: Sequence[int]) -> Batch:
        assert isinstance(positions, range)
        if self.fails_at in positions:
            raise RuntimeError("no such row")
        self.asked.append(positions)
        self.threads.add(threading.get_ident())
        return batch_of(positions)


@given(
    world=st.integers(1, 5),
    accumulation=st.integers(1, 5),
    micro=st.integers(1, 7),
    batches=st.integers(1, 3),
    first=st.integers(0, 1000),
)
def test_every_position_is_worked_on_exactly_once(
    world: int, accumulation: int, micro: int, batches: int, first: int
) -> None:
    size = world * accumulation * micro
    shares = [RankSlice(size, accumulation, rank, world) for rank in range(world)]
    assert all(share.micro_batch == micro for share in shares)
    for start in range(first, first + batches * size, size):
        turns = [
            position
            for turn in range(accumulation)
            for row in zip(*(share.positions(start, turn) for share in shares), strict=True)
            for position in row
        ]
        # Turn by turn, the processes together read the stream from front to back, side by side.
        assert turns == list(range(start, start + size))


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_stream_keeps_the_order_and_starts_anywhere(prefetch: bool) -> None:
    samples = Counting()
    share = RankSlice(batch_size=12, accumulation=2, rank=1, world_size=2)
    batches = list(islice(Stream(samples, prefetch).batches(24, share), 5))
    seen = [batch.seeds for batch in batches]
    assert seen == [(25, 27, 29), (31, 33, 35), (37, 39, 41), (43, 45, 47), (49, 51, 53)]
    assert (threading.get_ident() in samples.threads) != prefetch


def test_prefetching_is_one_batch_ahead_and_stops_with_its_reader() -> None:
    samples = Counting()
    stream = Stream(samples).batches(0, RankSlice(4))
    next(stream)
    before = threading.active_count()
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() < before
    assert [places.start for places in samples.asked] == [0, 4]


def test_a_failure_while_preparing_reaches_the_reader() -> None:
    stream = Stream(Counting(fails_at=5)).batches(0, RankSlice(4))
    next(stream)
    with pytest.raises(RuntimeError, match="no such row"):
        next(stream)


def test_concatenate_keeps_rows_together_and_counts_positions_once() -> None:
    both = concatenate(batch_of(range(3), "instance"), batch_of(range(3), "prior", weight=0.5))
    assert both.positions == 3
    assert both.terms == ("instance",) * 3 + ("prior",) * 3
    assert both.prompts[3] == "prior 0"
    assert both.weights.tolist() == [1, 1, 1, 0.5, 0.5, 0.5]
    assert both.images.flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert both.low_res is not None
    assert len(both.low_res) == 6
    assert both.to(torch.device("cpu")).seeds == both.seeds


def test_concatenate_puts_embedded_texts_one_behind_the_other() -> None:
    def texts(*lengths: int) -> PackedTexts:
        rows = [torch.full((length, 2), float(length)) if length else None for length in lengths]
        return PackedTexts.pack(rows, 2)

    first = replace(batch_of(range(2)), texts=texts(3, 0))
    both = concatenate(first, replace(batch_of(range(2), "prior"), texts=texts(1, 2))).texts
    assert both is not None
    assert both.lengths == (3, 0, 1, 2)
    assert both.tokens[:, 0].tolist() == [3, 3, 3, 1, 2, 2]
    with pytest.raises(ValueError, match="Only one of two batches"):
        concatenate(first, batch_of(range(2), "prior"))
