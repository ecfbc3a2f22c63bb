"""Orders are drawn in turns and in shared calls, and every picture is as it is alone.

A scheduler's turns are taken one by one here, without its thread, wherever that can be.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.config.serve import BatchConfig, LimitConfig
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.serve.models import Models
from cascade.serve.picture import preview_steps
from cascade.serve.scheduler import Scheduler
from cascade.serve.ticket import Begun, Busy, Cancelled, Drawn, Ended, Stepped, Ticket, TooLate
from cascade.tensors import NoPictureError

Make = Callable[..., Any]
LIMITS = LimitConfig()


def finish(scheduler: Scheduler) -> None:
    """Take turns until nothing is left."""
    for _ in range(10_000):
        if not scheduler.turn():
            break
    assert scheduler.counts().idle


def networks(cascade: Cascade) -> list[Any]:
    return [stage.network for stage in cascade.stages]


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"steps": 2, "sampler": "ancestral"},
    {"guidance": 1.0, "sampler": "ddim"},
    {"sampler": "heun", "guidance_interval": (0.5, 50.0), "steps": 4},
    {"negative_prompts": "a cat", "last_stage": "base16"},
    {"aspect": "2:1"},
)


@pytest.mark.parametrize("mode", ["exact", "padded", "mixed"])
@pytest.mark.parametrize("seed", range(2))
def test_in_any_company_a_picture_has_the_bits_that_it_has_alone(
    seed: int,
    mode: str,
    served: Models,
    by_rows: Cascade,
    order: Make,
    heard: Make,
    alone: Make,
    unpinned: Make,
) -> None:
    chance = random.Random(seed)
    batch = BatchConfig(mode=mode, rows=chance.choice([1, 5, 8]), at_once=chance.choice([2, 5]))
    scheduler = Scheduler(served, batch, LIMITS)
    orders = [
        order(
            served,
            prompt=chance.choice(["a dog", "a red cat on the beach", ""]),
            seeds=chance.sample(range(99), chance.randint(1, 3)),
            client=chance.choice("ab"),
            previews=chance.randint(0, 3),
            **chance.choice(OPTIONS),
        )
        for _ in range(6)
    ]
    told = [heard() for _ in orders]
    tickets: list[Ticket] = []
    for one, sink in zip(orders, told, strict=True):
        tickets.append(scheduler.submit(one, sink))
        for _ in range(chance.randint(0, 4)):
            scheduler.turn()
        if chance.random() < 0.2:
            scheduler.cancel(chance.choice(tickets))
    finish(scheduler)
    assert any(sink.error is None for sink in told)
    for one, sink in zip(orders, told, strict=True):
        expected = alone(by_rows, one)
        assert all(torch.equal(image, expected[at]) for at, image in sink.images.items())
        assert (sink.error is None) == (sink.images.keys() == expected.keys())
        assert isinstance(sink.error, Cancelled | None)
        steps = [event.done for event in sink.of(Stepped)]
        assert steps == list(range(1, len(steps) + 1))
        assert len(sink.of(Begun)) <= 1
    assert unpinned()


def test_calls_are_shared_up_to_their_rows_by_pictures_of_one_stage(
    served: Models, by_rows: Cascade, order: Make, heard: Make
) -> None:
    base, later = networks(by_rows)
    scheduler = Scheduler(served, BatchConfig(rows=5, at_once=4), LIMITS)
    for seed in range(3):
        scheduler.submit(order(served, seeds=[seed]), heard())
    finish(scheduler)
    # Under guidance a picture has two rows, so two of three share a call; the third follows.
    assert base.rows == [4, 4, 4, 2, 2, 2]
    assert sorted(later.rows) == [1, 1, 2, 2]


def test_a_network_whose_rows_depend_on_each_other_is_asked_for_each_alone(
    fake: Make, by_rows: Cascade, order: Make, heard: Make
) -> None:
    models = Models({"tiny": fake({"": by_rows}, exact=False)})
    base = networks(by_rows)[0]
    for mode, rows in (("exact", {2}), ("mixed", {4, 8}), ("padded", {9})):
        base.rows.clear()
        scheduler = Scheduler(models, BatchConfig(mode=mode, rows=9, at_once=6), LIMITS)
        scheduler.submit(order(models, seeds=range(6)), heard())
        finish(scheduler)
        assert set(base.rows) == rows


def test_padded_calls_have_one_length_of_text(
    fake: Make, cascade: Cascade, order: Make, heard: Make
) -> None:
    seen = set()

    def network(x: Tensor, t: Tensor, text: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.add((len(x), text.shape[1]))
        return x

    stages = [cascade.stages[0].with_network(network)]
    models = Models({"tiny": fake({"": Cascade(cascade.manifest, cascade.encoder, stages)})})
    scheduler = Scheduler(models, BatchConfig(mode="padded", rows=6, at_once=4), LIMITS)
    for prompt in ("a dog", "a red dog on the beach in the snow"):
        scheduler.submit(order(models, prompt=prompt, seeds=[0, 1]), heard())
    finish(scheduler)
    assert seen == {(6, 16)}


def test_clients_take_turns_and_a_small_order_does_not_wait_for_all_of_a_large_one(
    served: Models, order: Make, heard: Make
) -> None:
    scheduler = Scheduler(served, BatchConfig(at_once=1), LIMITS)
    drawn: list[str] = []
    for name, count in (("a large", 4), ("a small", 1), ("b", 2), ("c", 1)):
        sink = heard(when=lambda event, n=name: drawn.append(n) if type(event) is Drawn else None)
        scheduler.submit(order(served, seeds=range(count), client=name[0]), sink)
        if name == "a large":
            scheduler.turn()  # its first picture is drawn already
    finish(scheduler)
    assert drawn == ["a large", "a small", "b", "c", "a large", "b", "a large", "a large"]


def test_what_does_not_fit_into_the_queue_is_refused_whole(
    served: Models, order: Make, heard: Make
) -> None:
    limits = LimitConfig(pictures=3, waiting=4, waiting_per_client=3)
    scheduler = Scheduler(served, BatchConfig(at_once=2), limits)
    scheduler.submit(order(served, seeds=[0, 1], client="a"), heard())
    with pytest.raises(Busy) as own:
        scheduler.submit(order(served, seeds=[0, 1], client="a"), heard())
    assert own.value.of_client
    scheduler.submit(order(served, seeds=[0], client="b"), heard())
    nothing = heard()
    with pytest.raises(Busy) as full:
        scheduler.submit(order(served, seeds=[0, 1], client="c"), nothing)
    assert not full.value.of_client
    assert full.value.retry_after >= 1
    assert scheduler.counts().clients == {"a": 2, "b": 1}
    scheduler.turn()  # two leave the queue, and count for their client still
    assert scheduler.counts().waiting == {"tiny": 1}
    assert scheduler.counts().drawing == {"tiny": 2}
    scheduler.submit(order(served, seeds=[0, 1, 2], client="c"), heard())
    finish(scheduler)
    assert nothing.events == []


def test_an_order_that_would_be_late_is_refused_at_once(
    served: Models, order: Make, heard: Make
) -> None:
    scheduler = Scheduler(served, BatchConfig(at_once=1), LIMITS)
    scheduler._book.pace.note("tiny", "base16", 3.0)  # of three steps
    scheduler._book.pace.note("tiny", "sr32", 0.5)  # of two
    scheduler.submit(order(served, seeds=[0, 1], seconds=25, client="a"), heard())
    with pytest.raises(Busy) as late:
        scheduler.submit(order(served, seconds=25, client="a"), heard())
    assert 4 < late.value.retry_after <= 6
    # A client whose turn is next waits for one picture, not for the whole queue.
    scheduler.submit(order(served, seconds=25, client="b"), heard())
    limits = LimitConfig(waiting=10)
    full = Scheduler(served, BatchConfig(), limits)
    full._book.pace.note("tiny", "base16", 3.0)
    full.submit(order(served, seeds=range(9)), heard())
    with pytest.raises(Busy) as later:
        full.submit(order(served, seeds=range(4), client="b"), heard())
    assert later.value.retry_after == 3 * 9  # three pictures have to leave before


def test_the_pace_is_what_drawing_takes(
    served: Models, by_rows: Cascade, order: Make, heard: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    for module in ("calls", "scheduler"):
        monkeypatch.setattr(f"cascade.serve.{module}.perf_counter", lambda: clock[0])

    def slowly(x: Tensor) -> None:
        clock[0] += 6.0

    for network in networks(by_rows):
        network.before = slowly
    scheduler = Scheduler(served, BatchConfig(at_once=3), LIMITS)
    for seed in range(3):
        scheduler.submit(order(served, seeds=[seed]), heard())
    finish(scheduler)
    # Three share a call of six seconds: two for a picture's step.
    assert scheduler._book.pace.picture(order(served)) == pytest.approx(2.0 * 5)


def test_a_late_order_ends_wherever_it_is(
    served: Models,
    order: Make,
    heard: Make,
    unpinned: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("cascade.serve.book.monotonic", lambda: clock[0])
    scheduler = Scheduler(served, BatchConfig(at_once=1), LIMITS)
    told = [heard(), heard(), heard()]
    for sink, deadline in zip(told, (5.0, 5.0, 50.0), strict=True):
        scheduler.submit(replace(order(served), deadline=deadline), sink)
    scheduler.turn()
    clock[0] = 10.0
    finish(scheduler)
    assert [type(sink.error) for sink in told] == [TooLate, TooLate, type(None)]
    assert len(told[0].of(Stepped)) == 1
    assert told[1].of(Begun) == []
    assert unpinned()


def test_who_would_be_late_is_not_begun(
    served: Models, order: Make, heard: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade.serve.book.monotonic", lambda: 100.0)
    scheduler = Scheduler(served, BatchConfig(at_once=1), LIMITS)
    asked = [(1, 109.0), (1, 111.0), (2, 119.0), (2, 121.0)]
    told = [heard() for _ in asked]
    for sink, (pictures, deadline) in zip(told, asked, strict=True):
        scheduler.submit(replace(order(served, seeds=range(pictures)), deadline=deadline), sink)
    # Ten seconds a picture, as is found only now.
    scheduler._book.pace.note("tiny", "base16", 3.0)  # of three steps
    scheduler._book.pace.note("tiny", "sr32", 0.5)  # of two
    finish(scheduler)
    assert [type(sink.error) for sink in told] == [TooLate, type(None), TooLate, type(None)]
    assert told[0].of(Begun) == told[2].of(Begun) == []


def test_cancelled_orders_end_once_wherever_they_are(
    served: Models, order: Make, heard: Make, unpinned: Make
) -> None:
    scheduler = Scheduler(served, BatchConfig(at_once=2), LIMITS)
    told = [heard(), heard(), heard()]
    tickets = [scheduler.submit(order(served, seeds=[0, 1, 2]), sink) for sink in told]
    scheduler.turn()
    scheduler.cancel(tickets[0])
    scheduler.cancel(tickets[0])
    tickets[1].cancelled.set()
    finish(scheduler)
    scheduler.cancel(tickets[2])
    scheduler.turn()
    assert [type(sink.error) for sink in told] == [Cancelled, Cancelled, type(None)]
    assert unpinned()


def test_what_one_picture_breaks_on_is_its_orders_alone(
    served: Models, by_rows: Cascade, order: Make, heard: Make, alone: Make, unpinned: Make
) -> None:
    def fragile(x: Tensor) -> None:
        if any(torch.equal(row, marked) for row in x):
            raise RuntimeError("the engine broke")

    scheduler = Scheduler(served, BatchConfig(rows=8, at_once=4), LIMITS)
    orders = [order(served, seeds=[seed, seed + 10]) for seed in range(2)]
    expected = [alone(by_rows, one) for one in orders]
    told = [heard(), heard()]
    for one, sink in zip(orders, told, strict=True):
        scheduler.submit(one, sink)
    scheduler.turn()
    broken = scheduler._book.drawing[1]
    query = broken.drawing.ask()
    marked = query.x[0] * torch.rsqrt(1 + query.sigma[0] ** 2).float()  # as the network sees it
    networks(by_rows)[0].before = fragile
    failed = next(i for i, one in enumerate(orders) if one is broken.work.order)
    finish(scheduler)
    assert str(told[failed].error) == "the engine broke"
    assert told[1 - failed].error is None
    images = told[1 - failed].images
    assert all(torch.equal(images[at], expected[1 - failed][at]) for at in images)
    assert unpinned()


def test_what_is_no_picture_ends_its_order(
    served: Models, by_rows: Cascade, order: Make, heard: Make, unpinned: Make
) -> None:
    network = networks(by_rows)[0]
    network.forward = lambda x, *rest: torch.full_like(x, torch.nan)
    scheduler = Scheduler(served, BatchConfig(), LIMITS)
    sink = heard()
    scheduler.submit(order(served, seeds=[0, 1, 2], previews=2), sink)
    finish(scheduler)
    assert isinstance(sink.error, NoPictureError)
    assert sink.previews == []
    assert unpinned()


def test_a_model_that_does_not_open_ends_its_orders(
    fake: Make, by_rows: Cascade, order: Make, heard: Make
) -> None:
    library = fake({"": by_rows})
    models = Models({"tiny": library})
    asked, told = order(models, seeds=[0, 1]), heard()
    library.damaged.add("")
    scheduler = Scheduler(models, BatchConfig(), LIMITS)
    scheduler.submit(asked, told)
    finish(scheduler)
    assert isinstance(told.error, UserError)
    library.damaged.clear()
    one_stage = Cascade(by_rows.manifest, by_rows.encoder, by_rows.stages[:1])
    library.made[""] = one_stage
    changed = heard()
    scheduler.submit(asked, changed)
    finish(scheduler)
    assert "have changed" in str(changed.error)
    assert not any(held.pins for held in models._shelf._held.values())


def test_a_client_that_does_not_listen_is_not_drawn_for(
    served: Models, order: Make, heard: Make, unpinned: Make
) -> None:
    def deaf(event: object) -> None:
        raise RuntimeError("the loop is closed")

    scheduler = Scheduler(served, BatchConfig(), LIMITS)
    sink, other = heard(when=deaf), heard()
    scheduler.submit(order(served, seeds=[0, 1]), sink)
    scheduler.submit(order(served), other)
    finish(scheduler)
    assert sink.images == {}
    assert other.error is None
    assert unpinned()


def test_a_model_without_room_is_passed_but_not_for_ever(
    fake: Make, by_rows: Cascade, order: Make, heard: Make
) -> None:
    library = fake({"": by_rows, "other": by_rows}, sizes={"": 6, "other": 6})
    models = Models({"tiny": library}, max_memory=10)
    held = models.acquire("tiny")  # there is no room for the other before it is released
    assert held is not None
    scheduler = Scheduler(models, BatchConfig(at_once=2), LIMITS)
    drawn: list[str] = []

    def sink(name: str) -> Any:
        return heard(when=lambda event: drawn.append(name) if type(event) is Drawn else None)

    short = {"steps": 1, "last_stage": "base16"}
    scheduler.submit(order(models, "tiny:other", client="b", **short), sink("b"))
    scheduler.submit(order(models, client="a", seeds=range(20), **short), sink("a"))
    while scheduler.turn():
        pass
    assert drawn == ["a"] * 16
    assert scheduler.counts().waiting == {"tiny": 4, "tiny:other": 1}
    models.release(held)
    finish(scheduler)
    assert drawn == [*["a"] * 16, "b", *["a"] * 4]
    assert library.opened == ["", "other", ""]


@pytest.mark.parametrize(
    ("counts", "previews", "expected"),
    [
        ([3, 2], 0, []),
        ([3, 2], 1, [3]),
        ([20, 10], 2, [10, 20]),
        ([20, 10], 3, [8, 15, 20]),
        ([10], 1, [5]),
        ([100, 1], 1, [50]),
        ([1], 3, []),
        ([1, 1], 3, [1]),
        ([2, 2, 2], 2, [2, 4]),
    ],
)
def test_previews_are_spread_and_fall_on_the_ends_of_stages(
    counts: list[int], previews: int, expected: list[int]
) -> None:
    assert preview_steps(counts, previews) == expected


def test_previews_show_what_a_stage_predicts_or_has_drawn(
    served: Models, by_rows: Cascade, order: Make, heard: Make, alone: Make
) -> None:
    scheduler = Scheduler(served, BatchConfig(), LIMITS)
    many, one = heard(), heard()
    scheduler.submit(order(served, seeds=[4, 5], previews=3), many)
    scheduler.submit(order(served, seeds=[6], previews=1), one)
    finish(scheduler)
    shown = {(each.picture, each.number): (each.stage, each.image.shape) for each in many.previews}
    small, large = ("base16", (3, 16, 16)), ("sr32", (3, 32, 32))
    stages = (small, small, large)
    assert shown == {(at, number): stages[number] for at in (0, 1) for number in range(3)}
    assert len(many.previews) == 6
    assert all(each.image.abs().max() <= 1 for each in many.previews)
    base = alone(by_rows, order(served, seeds=[6], last_stage="base16"))
    assert [(each.number, each.stage) for each in one.previews] == [(0, "base16")]
    assert torch.equal(one.previews[0].image, base[0])


@pytest.fixture
def running(served: Models) -> Any:
    """A scheduler with its thread."""
    scheduler = Scheduler(served, BatchConfig(rows=8, at_once=4), LIMITS)
    scheduler.start()
    yield scheduler
    scheduler.stop()


class Waiting:
    """A sink that can be waited for."""

    def __init__(self, heard: Make) -> None:
        self.ended = threading.Event()
        self.heard = heard(when=lambda event: self.ended.set() if type(event) is Ended else None)

    def wait(self) -> Any:
        assert self.ended.wait(60)
        return self.heard


@pytest.mark.parametrize("exact", [True, False])
def test_eight_clients_on_two_models_get_the_pictures_that_are_drawn_alone(
    exact: bool,
    fake: Make,
    cascade: Cascade,
    by_rows: Cascade,
    order: Make,
    heard: Make,
    alone: Make,
) -> None:
    first = by_rows if exact else cascade
    tuned = [
        stage.with_network(lambda *given, network=stage.network: 0.9 * network(*given))
        for stage in first.stages
    ]
    made = {"": first, "my-dog": Cascade(first.manifest, first.encoder, tuned)}
    models = Models({"tiny": fake(made, exact=exact)})
    scheduler = Scheduler(models, BatchConfig(at_once=6), LIMITS)
    scheduler.start()
    wrong: list[str] = []

    def ask(client: int) -> None:
        for turn in range(2):
            name = ("", "my-dog")[(client + turn) % 2]
            model = "tiny:my-dog" if name else "tiny"
            one = order(models, model, "a dog", [client * 10 + turn], str(client))
            sink = Waiting(heard)
            scheduler.submit(one, sink.heard)
            image = sink.wait().images[0]
            theirs = {
                own: torch.equal(image, alone(cascade, one)[0]) for own, cascade in made.items()
            }
            if theirs != {own: own == name for own in made}:
                wrong.append(f"{client} {turn}")

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert scheduler.counts().idle
    scheduler.stop()


def test_draining_lets_end_what_is_there_and_takes_nothing_new(
    running: Scheduler, served: Models, by_rows: Cascade, order: Make, heard: Make, unpinned: Make
) -> None:
    at, go = threading.Event(), threading.Event()

    def held(x: Tensor) -> None:
        at.set()
        assert go.wait(60)

    networks(by_rows)[0].before = held
    sink = Waiting(heard)
    running.submit(order(served, seeds=[0, 1]), sink.heard)
    assert at.wait(60)
    ended: list[bool] = []
    drain = threading.Thread(target=lambda: ended.append(running.drain(60)))
    drain.start()
    while running._book.is_open:
        pass
    with pytest.raises(Busy):
        running.submit(order(served), heard())
    go.set()
    drain.join()
    assert ended == [True]
    assert sink.wait().error is None
    assert running.counts().idle
    assert unpinned()


def test_what_is_not_done_when_draining_ends_is_cancelled(
    running: Scheduler, served: Models, by_rows: Cascade, order: Make, heard: Make, unpinned: Make
) -> None:
    at, go = threading.Event(), threading.Event()

    def held(x: Tensor) -> None:
        at.set()
        assert go.wait(60)

    networks(by_rows)[0].before = held
    sinks = [Waiting(heard) for _ in range(3)]
    tickets = [running.submit(order(served, seeds=[0, 1, 2]), sink.heard) for sink in sinks]
    assert at.wait(60)
    ended: list[bool] = []
    drain = threading.Thread(target=lambda: ended.append(running.drain(0)))
    drain.start()
    assert tickets[-1].cancelled.wait(60)
    go.set()
    drain.join()
    assert ended == [False]
    assert [type(sink.wait().error) for sink in sinks] == [Cancelled] * 3
    assert running.counts().idle
    assert unpinned()


def test_stopping_ends_what_is_left(served: Models, order: Make, heard: Make) -> None:
    scheduler = Scheduler(served, BatchConfig(), LIMITS)
    sink = heard()
    scheduler.submit(order(served), sink)
    scheduler.stop()  # it was never started
    assert isinstance(sink.error, Cancelled)
    with pytest.raises(Busy):
        scheduler.submit(order(served), heard())
    with pytest.raises(RuntimeError, match="start it"):
        scheduler.warm_up()


def test_the_thread_outlives_a_mistake_of_the_scheduler(
    running: Scheduler, served: Models, order: Make, heard: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cascade.serve.scheduler.sharing", lambda *given: 1 / 0)
        sink = Waiting(heard)
        running.submit(order(served), sink.heard)
        assert isinstance(sink.wait().error, ZeroDivisionError)
    again = Waiting(heard)
    running.submit(order(served), again.heard)
    assert again.wait().error is None


@pytest.mark.parametrize(
    ("mode", "exact", "rows"),
    [
        ("exact", True, {1, 2, 3, 4, 5}),
        ("exact", False, {1, 2}),
        ("mixed", False, {1, 2, 3, 4, 5}),
        ("padded", False, {5}),
    ],
)
def test_warming_up_calls_every_network_with_all_rows_there_can_be(
    mode: str, exact: bool, rows: set[int], fake: Make, by_rows: Cascade, order: Make
) -> None:
    library = fake({"": by_rows}, exact=exact)
    models = Models({"tiny": library})
    scheduler = Scheduler(models, BatchConfig(mode=mode, rows=5, at_once=3), LIMITS)
    scheduler.start()
    scheduler.warm_up()
    assert [set(network.rows) for network in networks(by_rows)] == [rows, rows]
    assert scheduler._book.pace.picture(order(models)) > 0
    assert not any(held.pins for held in models._shelf._held.values())
    library.damaged.add("")
    models.close()
    with pytest.raises(UserError):
        scheduler.warm_up()
    scheduler.stop()
