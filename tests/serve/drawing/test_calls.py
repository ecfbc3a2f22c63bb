"""Calls of networks that are made beside each other, in threads."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.config.serve import BatchConfig, LimitConfig
from cascade.pipeline import Cascade
from cascade.serve.models import Models
from cascade.serve.scheduler import Scheduler
from cascade.serve.ticket import Cancelled, Ended

Make = Callable[..., Any]
LIMITS = LimitConfig()
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"guidance": 1.0, "sampler": "ddim"},
    {"sampler": "heun", "steps": 4},
    {"last_stage": "base16"},
)


@pytest.mark.parametrize("mode", ["exact", "mixed"])
def test_calls_made_beside_each_other_draw_the_same_bits(
    mode: str,
    served: Models,
    by_rows: Cascade,
    order: Make,
    heard: Make,
    alone: Make,
    unpinned: Make,
) -> None:
    chance = random.Random(0)
    scheduler = Scheduler(served, BatchConfig(mode=mode, at_once=5, calls=3), LIMITS)
    scheduler.start()
    told: list[Any] = []
    for number in range(6):
        seeds = chance.sample(range(99), chance.randint(1, 3))
        one = order(served, seeds=seeds, client=chance.choice("ab"), **chance.choice(OPTIONS))
        told.append((one, heard()))
        ticket = scheduler.submit(*told[-1])
        if number == 3:
            scheduler.cancel(ticket)
    assert scheduler.drain(60)
    scheduler.stop()
    assert [type(sink.error) for _, sink in told].count(Cancelled) == 1
    for one, sink in told:
        expected = alone(by_rows, one)
        assert sink.error is not None or sink.images.keys() == expected.keys()
        assert all(torch.equal(image, expected[at]) for at, image in sink.images.items())
    assert unpinned()


def test_pictures_that_need_not_share_a_call_are_asked_for_beside_each_other(
    served: Models, by_rows: Cascade, order: Make, heard: Make
) -> None:
    base: Any = by_rows.stages[0].network
    both = threading.Barrier(2)
    base.before = lambda x: both.wait(10) and None
    scheduler = Scheduler(served, BatchConfig(at_once=2, calls=2), LIMITS)
    sink = heard()
    scheduler.submit(order(served, seeds=[0, 1]), sink)
    scheduler.start()
    assert scheduler.drain(60)
    scheduler.stop()
    assert sink.error is None
    assert base.rows == [2] * 6


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
def test_weights_stay_until_a_call_of_them_has_ended(
    how: str, served: Models, by_rows: Cascade, order: Make, heard: Make, unpinned: Make
) -> None:
    base: Any = by_rows.stages[0].network
    called, go_on = threading.Event(), threading.Event()

    def slow(x: Tensor) -> None:
        called.set()
        assert go_on.wait(10)

    base.before = slow
    scheduler = Scheduler(served, BatchConfig(at_once=2, calls=2), LIMITS)
    ended = threading.Event()
    sink = heard(when=lambda event: ended.set() if isinstance(event, Ended) else None)
    ticket = scheduler.submit(order(served), sink)
    scheduler.start()
    assert called.wait(10)
    stopping = threading.Thread(target=scheduler.stop)
    if how == "cancelled":
        scheduler.cancel(ticket)
    else:
        stopping.start()
    assert ended.wait(10)  # told before the call has ended
    assert isinstance(sink.error, Cancelled)
    assert not unpinned()
    go_on.set()
    if how == "cancelled":
        stopping.start()
    stopping.join(10)
    assert unpinned()
