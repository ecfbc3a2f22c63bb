"""Who is drawn next, and with whom: a thread that advances all pictures step by step."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from time import monotonic, perf_counter
from typing import Final

from cascade.config.serve import BatchConfig, LimitConfig
from cascade.errors import UserError
from cascade.serve.book import Book
from cascade.serve.book import Counts as Counts
from cascade.serve.calls import Call, Calls
from cascade.serve.lanes import filled, sharing
from cascade.serve.models import Models, Unknown
from cascade.serve.picture import Picture
from cascade.serve.queue import Work
from cascade.serve.ticket import Begun, Cancelled, Ended, Event, Order, Sink, Ticket, TooLate
from cascade.serve.warm import warm_up
from cascade.serve.watch import Nobody, Outcome, Watch

_LOG: Final = logging.getLogger("cascade")
_PASSES: Final = 16  # pictures that may go ahead of one whose model has no room
_LOOK: Final = 0.05  # seconds between two looks whether there is room again, or somebody late


class Scheduler:
    """Draws orders; every method may be called from any thread.

    A thread of its own does all of it, sinks included, and calls the networks, unless several calls
    are made at a time: those have threads beside it.
    """

    def __init__(
        self,
        models: Models,
        batch: BatchConfig,
        limits: LimitConfig,
        watch: Watch | None = None,
    ) -> None:
        self._models, self._batch, self._watch = models, batch, watch or Nobody()
        self._book = Book(limits)
        self._calls = Calls(batch.calls, self._wake)
        self._warming: Future[None] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="cascade-serve", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, order: Order, sink: Sink) -> Ticket:
        """Put all pictures of an order into the queue.

        `sink` then gets `Begun`, a `Stepped` per step, `Preview`s, a `Drawn` per picture, and at
        last, exactly once, `Ended`.

        Raises:
            Busy: the queue or the client's share of it is full, the order would be late, or the
                scheduler is drained; nothing will be told to `sink`.
        """
        return self._book.enter(order, sink)

    def cancel(self, ticket: Ticket) -> None:
        """End an order with `Cancelled` before its next step; does nothing where it has ended."""
        ticket.cancelled.set()
        self._wake()

    def counts(self) -> Counts:
        """Return how many pictures wait and are drawn."""
        return self._book.counts()

    def warm_up(self) -> None:
        """Call every network of every model with every number of rows that can occur.

        It is done in the scheduler's thread, which must have been started; what is submitted
        meanwhile waits.

        Raises:
            UserError: a model cannot be opened or called.
        """
        asked: Future[None] = Future()
        with self._book.changed:
            if self._stopping or not self._thread.is_alive():
                raise RuntimeError("the scheduler does not run; start it first")
            self._warming = asked
            self._book.changed.notify_all()
        asked.result()

    def drain(self, seconds: float) -> bool:
        """Refuse new orders; wait until those there have ended, and cancel the rest after a time.

        Returns:
            Whether all had ended by then.
        """
        book = self._book
        with book.changed:
            book.is_open = False
            in_time = book.changed.wait_for(lambda: not book.works, seconds)
            for work in book.works:
                work.ticket.cancelled.set()
            book.changed.notify_all()
            book.changed.wait_for(lambda: not book.works or not self._thread.is_alive())
        return in_time

    def stop(self) -> None:
        """Cancel all that is left, and end the thread."""
        with self._book.changed:
            self._book.is_open = False
            self._stopping = True
            self._book.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._end_all(Cancelled("the server is stopped"))

    def turn(self) -> bool:
        """Do what the thread does over and over: let in, choose, call, take what is answered.

        Returns:
            Whether a call has ended.
        """
        for work, error in self._book.overdue(self._batch.at_once):
            self._end(work, error)
        while len(self._book.drawing) < self._batch.at_once and self._admit():
            pass
        while group := self._next():
            self._calls.begin(group, filled(self._batch))
        ended = self._calls.take()
        for call in ended:
            self._take(call)
        return bool(ended)

    def _run(self) -> None:
        while not self._stopping:
            seen, ended = self._book.entered, False
            try:
                self._warm()
                ended = self.turn()
            except Exception as error:  # noqa: BLE001  it may cost what is in hand, not the thread
                _LOG.exception("the scheduler failed")
                self._end_all(error)
            if not ended:
                self._wait(seen)
        self._end_all(Cancelled("the server is stopped"))
        for call in self._calls.close():
            self._take(call)
        with self._book.changed:
            if self._warming is not None:
                self._warming.cancel()

    def _wait(self, seen: int) -> None:
        """Sleep until there may be something to do, where no order has come meanwhile."""
        book = self._book
        with book.changed:
            news = book.entered > seen or self._calls.any_ended
            if not (self._stopping or self._warming or news):
                book.changed.wait(_LOOK if book.works else None)

    def _wake(self) -> None:
        with self._book.changed:
            self._book.changed.notify_all()

    def _warm(self) -> None:
        asked = self._warming
        if asked is None:
            return
        try:
            warm_up(self._models, self._batch, self._book.pace, lambda: self._stopping)
        except Exception as error:  # noqa: BLE001  who asked is told
            asked.set_exception(error)
        else:
            asked.set_result(None)
        finally:
            self._warming = None

    def _admit(self) -> bool:
        """Let the next picture in; return whether there was one whose model has room."""
        padded = self._batch.mode == "padded"
        passed: list[Work] = []
        for work in self._book.turns():
            with self._blamed(work):
                loaded = self._models.acquire(work.order.model)
                if loaded is None:
                    if work.passed >= _PASSES:
                        return False  # nobody goes ahead of it any more
                    passed.append(work)
                    continue
                for other in passed:
                    other.passed += 1
                picture = self._book.admit(work, loaded, padded)
                self._watch.waited(work.order.model, picture.since - work.since)
                if work.admitted == 1:
                    self._tell(work, Begun())
                start = perf_counter()
                picture.begin(self._watch)
                picture.seconds = perf_counter() - start
            return True
        return False

    def _next(self) -> list[Picture]:
        """Return who shares the next call, if one can be made now."""
        free = self._calls.free
        idle = [picture for picture in self._book.drawing if not picture.in_call]
        # Nobody shares a call where there is another thread for it.
        return sharing(idle, self._batch, -(-len(idle) // free)) if free else []

    def _take(self, call: Call) -> None:
        start = perf_counter()
        first = call.group[0]
        model, stage = first.loaded.model, first.drawing.stage
        self._watch.step(model, stage, len(call.group), call.rows, call.seconds)
        for picture in call.group:
            if picture.work.ended:  # meanwhile
                self._release(picture)
        ended = []
        for picture, answer in zip(call.group, call.answers, strict=True):
            at, work = picture.at, picture.work
            if work.ended:  # or another picture of it has failed just now
                continue
            with self._blamed(work):
                if isinstance(answer, Exception):
                    raise answer
                for event in picture.take(answer, self._watch):
                    self._tell(work, event)
            if picture.at > at:
                ended.append((picture, at))
            if picture.done:
                self._finish(picture)
        seconds = call.seconds / call.beside + perf_counter() - start
        for picture in call.group:
            picture.seconds += seconds / len(call.group)
        for picture, at in ended:
            self._note(picture, at)

    def _note(self, picture: Picture, at: int) -> None:
        """Note what a stage of a picture has taken."""
        setting = picture.work.order.request.settings[at]
        with self._book.changed:
            seconds = picture.seconds / setting.sampler.count
            self._book.pace.note(picture.loaded.model, setting.stage, seconds)
        picture.seconds = 0.0

    def _finish(self, picture: Picture) -> None:
        work = picture.work
        self._book.leave(picture)
        self._release(picture)
        work.drawn += 1
        self._watch.drawn(work.order.model, monotonic() - picture.since)
        if work.drawn == work.pictures:
            self._end(work, None)

    def _release(self, picture: Picture) -> None:
        picture.close()
        self._models.release(picture.loaded)

    @contextmanager
    def _blamed(self, work: Work) -> Iterator[None]:
        """End an order with what goes wrong with it, and nothing else."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  an engine's own; who asked is told
            if not isinstance(error, (UserError, Unknown)):
                _LOG.exception("an order for '%s' failed", work.order.model)
            self._end(work, error)

    def _end(self, work: Work, error: Exception | None) -> None:
        if work.ended:
            return
        work.ended = True
        for picture in self._book.withdraw(work):
            if not picture.in_call:  # else once the network has answered
                self._release(picture)
        self._watch.ended(work.order.model, _outcome(error))
        self._tell(work, Ended(error))
        self._book.forget(work)

    def _end_all(self, error: Exception) -> None:
        with self._book.changed:
            works = [*self._book.works]
        for work in works:
            self._end(work, error)

    def _tell(self, work: Work, event: Event) -> None:
        try:
            work.ticket.sink(event)
        except Exception:  # noqa: BLE001  whoever it is, others are drawn on
            _LOG.exception("nobody hears of an order for '%s' any more", work.order.model)
            work.ticket.cancelled.set()


def _outcome(error: Exception | None) -> Outcome:
    if error is None:
        return "drawn"
    if isinstance(error, Cancelled):
        return "cancelled"
    return "late" if isinstance(error, TooLate) else "failed"
