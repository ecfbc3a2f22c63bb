"""Orders: every record once an epoch, whatever the shards, windows, lanes and processes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.data.mixture import Mixture
from cascade.data.order import Order, permuted
from cascade.data.stream import RankSlice

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**63 - 1)


@given(count=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_the_map_is_one_to_one(count: int, key: int) -> None:
    assert sorted(permuted(np.arange(count), count, key)) == list(range(count))


@given(counts=st.lists(st.integers(1, 10**12), min_size=1, max_size=20), key=SEEDS)
def test_each_number_may_have_its_own_count_and_key(counts: list[int], key: int) -> None:
    index = np.array([count // 2 for count in counts])
    keys = np.arange(key, key + len(counts), dtype=np.uint64)
    together = permuted(index, np.array(counts), keys)
    alone = [int(permuted(index[[i]], n, int(keys[i]))[0]) for i, n in enumerate(counts)]
    assert together.tolist() == alone
    assert all(value < count for value, count in zip(alone, counts, strict=True))


def test_the_map_knows_no_favourites() -> None:
    """All orders of four are about as frequent: chi-square of 23 degrees of freedom."""
    keys = np.arange(24_000, dtype=np.uint64)
    places = [permuted(np.full(len(keys), i), 4, keys) for i in range(4)]
    found = Counter(zip(*(place.tolist() for place in places), strict=True))
    assert len(found) == 24
    chi = sum((count - 1000) ** 2 / 1000 for count in found.values())
    assert chi < 49.7  # exceeded by chance once in a thousand times


def test_neighbours_do_not_stay_neighbours() -> None:
    order = permuted(np.arange(10_000), 10_000, 7)
    # Of 9999 pairs two in 10,000 are neighbours by chance: 2 +- 4 standard deviations of 1.4.
    assert (np.abs(np.diff(order)) == 1).sum() < 8
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04  # 4 of 0.01


@given(
    shards=SHARDS,
    seed=SEEDS,
    window=st.integers(1, 200),
    lanes=st.integers(1, 17),
    start=st.integers(0, 3),
)
def test_every_record_comes_once_an_epoch(
    shards: list[int], seed: int, window: int, lanes: int, start: int
) -> None:
    order = Order(np.array(shards), seed, window, lanes)
    for epoch in range(start, start + 2):
        positions = np.arange(epoch * order.total, (epoch + 1) * order.total)
        assert sorted(order.indices(positions).tolist()) == list(range(order.total))


@given(
    shards=SHARDS,
    lanes=st.integers(1, 5),
    world=st.integers(1, 4),
    micro=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    moved=st.integers(1, 4),
    stop=st.integers(0, 30),
)
def test_another_world_goes_on_with_the_same_pictures(
    shards: list[int],
    lanes: int,
    world: int,
    micro: int,
    accumulation: int,
    moved: int,
    stop: int,
) -> None:
    """A run stops after any step, and as many or as few processes go on with what was to come."""
    batch = world * micro * accumulation * moved
    order = Order(np.array(shards), 5, 50, lanes)

    def seen(start: int, world: int, accumulation: int) -> list[int]:
        parts = [RankSlice(batch, accumulation, rank, world) for rank in range(world)]
        positions = [
            p for t in range(accumulation) for part in parts for p in part.positions(start, t)
        ]
        return sorted(order.indices(np.array(positions)).tolist())

    start = stop * batch
    assert seen(start, world, accumulation) == seen(start, moved, 1) == seen(start, 1, 1)


def test_a_window_spans_few_shards_and_a_process_reads_its_own() -> None:
    shards, lanes = np.full(64, 100), 4
    order = Order(shards, seed=1, window=800, lanes=lanes)
    share = [
        {int(index) // 100 for index in order.indices(np.arange(rank, 6400, lanes))}
        for rank in range(lanes)
    ]
    assert [len(mine) for mine in share] == [16] * 4
    assert sum(map(len, share)) == len(set.union(*share))
    # A window's 800 records lie in at most three shards of each lane.
    assert len({int(index) // 100 for index in order.indices(np.arange(800))}) <= 3 * lanes
    # And are shuffled: neighbours in the stream are seldom neighbours in a shard.
    lane = order.indices(np.arange(0, 800, lanes))
    assert (np.abs(np.diff(lane)) == 1).sum() < 10


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    counts = np.array([30, 50, 20])
    epochs = [
        tuple(Order(counts, 3, 1000).indices(np.arange(e * 100, e * 100 + 100))) for e in (0, 1)
    ]
    other = tuple(Order(counts, 4, 1000).indices(np.arange(100)))
    assert len({*epochs, other}) == 3


def test_a_place_far_away_is_found_at_once_and_holds_nothing() -> None:
    order = Order(np.full(10_000, 10_000), seed=0, window=2**17, lanes=64)
    place = np.array([10**15 + 7])
    assert 0 <= int(order.indices(place)[0]) < 10**8


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("weights", [(1.0,), (3.0, 1.0), (0.7, 0.2, 0.1), (1.0, 1e-9)])
def test_sources_have_their_shares_and_their_rows_in_order(
    weights: tuple[float, ...], group: int
) -> None:
    mixture = Mixture(weights, seed=2, group=group)
    source, own = mixture.of(np.arange(3 * 4096 * group))
    for number, weight in enumerate(weights):
        rows = own[source == number]
        assert rows.tolist() == list(range(len(rows)))
        share = len(rows) / len(source)
        assert share == pytest.approx(weight / sum(weights), abs=1.1 / 4096)
        assert share > 0
    assert (source.reshape(-1, group) == source.reshape(-1, group)[:, :1]).all()
    assert (own.reshape(-1, group) % group == np.arange(group)).all()


@given(
    weights=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=50),
    start=st.integers(0, 10**12),
)
def test_a_mixture_is_a_function_of_the_position(weights: list[float], start: int) -> None:
    mixture = Mixture(tuple(weights), seed=1)
    together = mixture.of(np.arange(start, start + 64))
    alone = [mixture.of(np.array([start + i])) for i in range(64)]
    assert together[0].tolist() == [int(source[0]) for source, _ in alone]
    assert together[1].tolist() == [int(own[0]) for _, own in alone]
