"""Figures in bounded memory: they are those of all numbers at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.data.order import mixed
from cascade.packing import figures
from cascade.packing.figures import Bins, Spread, Tally


@given(st.lists(st.lists(st.floats(-1e6, 1e6) | st.just(np.nan), max_size=20), max_size=8))
def test_parts_come_to_what_the_whole_does(parts: list[list[float]]) -> None:
    spread = Spread()
    for part in parts:
        spread.add(np.array(part, dtype=float))
    whole = np.array([value for part in parts for value in part if np.isfinite(value)])
    told = spread.told()
    if not len(whole):
        assert told == {}
        return
    assert (told["min"], told["max"], spread.count) == (whole.min(), whole.max(), len(whole))
    assert told["50%"] == np.quantile(whole, 0.5)
    # Sums of up to 160 numbers in another order.
    assert told["mean"] == pytest.approx(whole.mean(), rel=0, abs=160 * 2**-52 * 1e6)


def test_quantiles_of_many_numbers_are_of_an_even_sample() -> None:
    spread, rng = Spread(), np.random.default_rng(0)
    count = 40 * figures.MOST_SAMPLED
    for part in np.array_split(np.sort(rng.random(count)), 100):  # what comes first is small
        spread.add(part)
    assert len(spread._sample) == figures.MOST_SAMPLED
    # Five standard deviations of a quantile's rank in a sample.
    for share in figures.QUANTILES:
        bound = 5 * (share * (1 - share) / figures.MOST_SAMPLED) ** 0.5
        assert abs(spread.told()[f"{share:.0%}"] - share) < bound


def test_bins_of_whole_numbers_say_what_is_in_them() -> None:
    bins = Bins.whole(1, 2, 5)
    bins.add(np.array([0, 1, 1, 2, 4, 5, 99]))
    assert bins.told() == {"below 1": 1, "1": 2, "2 to 4": 2, "5 and more": 2}
    bins = Bins.whole(1, 2, 5)
    bins.add(np.array([3]))
    assert bins.told() == {"2 to 4": 1}


def test_a_ratio_is_in_the_nearest_bin() -> None:
    bins = Bins.nearest(((9, 16), (1, 1), (4, 3), (3, 2)))
    bins.add(np.array([1 / 9, 0.56, 1.01, 640 / 480, 1.4, 1.45, 7.0]))
    assert bins.told() == {"9:16": 2, "1:1": 1, "4:3": 2, "3:2": 2}


def test_names_are_exact_until_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MOST_NAMES", 10)
    tally = Tally()
    for number in range(1000):
        tally.add({"often": 3, f"once {number}": 1})
    assert tally.told(1) == {"often": 3000}
    assert len(tally._counts) <= 11


def test_keyed_hashes_are_even_and_differ_by_key() -> None:
    words = np.stack([mixed(key, np.arange(2**14)) for key in (-1, 0, 1)])
    assert len(np.unique(words)) == words.size
    ones = np.unpackbits(words.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / (64 * words.size) ** 0.5  # five standard deviations
