"""The book of orders: what waits, what is drawn, and whether there is room for more."""

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

from cascade.config.serve import LimitConfig
from cascade.serve.pace import Pace, retry
from cascade.serve.picture import Picture
from cascade.serve.queue import Queue, Work
from cascade.serve.shelf import Loaded
from cascade.serve.ticket import Busy, Cancelled, Order, Sink, Ticket, TooLate


@dataclass(frozen=True)
class Counts:
    """How many pictures there are in a scheduler; who has none is not named.

    Attributes:
        waiting: by model, in the queue.
        drawing: by model, being drawn.
        clients: by client, either.
    """

    waiting: Mapping[str, int]
    drawing: Mapping[str, int]
    clients: Mapping[str, int]

    @property
    def idle(self) -> bool:
        """Whether there are none."""
        return not (self.waiting or self.drawing or self.clients)


class Book:
    """Orders in hand; methods may be called from any thread.

    Attributes:
        changed: notified when an order comes or ends, and by who wants the worker to look up.
        works: orders that have not been told their end.
        entered: how many have come so far.
        pace: what drawing takes.
        is_open: whether orders are taken.
    """

    def __init__(self, limits: LimitConfig) -> None:
        self.changed = threading.Condition()
        self.works: dict[Work, None] = {}
        self.entered = 0
        self.pace = Pace()
        self.is_open = True
        self._limits = limits
        self._queue = Queue()
        self._drawing: list[Picture] = []  # the first to leave the queue first

    @property
    def drawing(self) -> list[Picture]:
        """The pictures that are being drawn, the first to leave the queue first."""
        with self.changed:
            return [*self._drawing]

    def enter(self, order: Order, sink: Sink) -> Ticket:
        """Take an order.

        Raises:
            Busy: there is no room for it.
        """
        with self.changed:
            self._require_room(order)
            waiting = deque(range(len(order.request.seeds)))
            work = Work(Ticket(order, sink), monotonic(), waiting)
            self._queue.add(work)
            self.works[work] = None
            self.entered += 1
            self.changed.notify_all()
        return work.ticket

    def turns(self) -> list[Work]:
        """Return the orders with waiting pictures, in the order of their turns."""
        with self.changed:
            return [*self._queue]

    def admit(self, work: Work, loaded: Loaded, padded: bool) -> Picture:
        """Take an order's next picture out of the queue."""
        with self.changed:
            picture = Picture(work, self._queue.take(work), loaded, monotonic(), padded)
            self._drawing.append(picture)
        return picture

    def leave(self, picture: Picture) -> None:
        """Note that a picture is not drawn any more."""
        with self.changed:
            self._drawing.remove(picture)

    def withdraw(self, work: Work) -> list[Picture]:
        """Take an order's pictures out of everything; return those that were being drawn."""
        with self.changed:
            self._queue.remove(work)
            mine = [picture for picture in self._drawing if picture.work is work]
            self._drawing = [picture for picture in self._drawing if picture.work is not work]
        return mine

    def forget(self, work: Work) -> None:
        """Forget an order that has been told its end."""
        with self.changed:
            self.works.pop(work, None)
            self.changed.notify_all()

    def overdue(self, places: int) -> list[tuple[Work, Exception]]:
        """Return the orders that nobody waits for any more, and why.

        Args:
            places: how many pictures are drawn at a time. Where one is free, an order is among
                them that, at the present pace and in the present company, would be late if it
                were begun now: before it costs others their time.
        """
        with self.changed:
            least = dict.fromkeys(self.works, 0.0)
            beside = len(self._drawing) + 1
            if beside <= places:
                for work in self._queue:
                    least[work] = self.pace.picture(work.order) * max(beside, len(work.waiting))
        gone: list[tuple[Work, Exception]] = []
        for work, seconds in least.items():
            if work.ticket.cancelled.is_set():
                gone.append((work, Cancelled("it was cancelled")))
            elif monotonic() + seconds >= work.order.deadline:
                gone.append((work, TooLate("its time is over")))
        return gone

    def counts(self) -> Counts:
        """Return how many pictures wait and are drawn."""
        waiting, drawing, clients = Counter[str](), Counter[str](), Counter[str]()
        with self.changed:
            for work in self._queue:
                waiting[work.order.model] += len(work.waiting)
                clients[work.order.client] += len(work.waiting)
            for picture in self._drawing:
                drawing[picture.work.order.model] += 1
                clients[picture.work.order.client] += 1
        return Counts(waiting, drawing, clients)

    def _require_room(self, order: Order) -> None:
        count, counts = len(order.request.seeds), self.counts()
        each = max(self._each(), self.pace.picture(order))
        if not self.is_open:
            raise Busy(retry(each * (1 + sum(counts.clients.values()))))
        own = counts.clients.get(order.client, 0) + count - self._limits.waiting_per_client
        if own > 0:
            raise Busy(retry(own * each * len(counts.clients)), of_client=True)
        over = sum(counts.waiting.values()) + count - self._limits.waiting
        if over > 0:
            raise Busy(retry(over * each))
        late = monotonic() + self._seconds(order, count) - order.deadline
        if late > 0:
            raise Busy(retry(late))

    def _seconds(self, order: Order, count: int) -> float:
        """Return when an order that came now would be done, at the present pace."""
        begun = sum(self.pace.picture(one.work.order) * one.left() for one in self._drawing)
        before = self._queue.before(order.client, count)
        waiting = sum(self.pace.picture(work.order) * pictures for work, pictures in before)
        return begun + waiting + self.pace.picture(order) * count

    def _each(self) -> float:
        """Return the mean seconds of a picture of those in hand."""
        orders = [work.order for work in self._queue for _ in work.waiting]
        orders += [picture.work.order for picture in self._drawing]
        return sum(map(self.pace.picture, orders)) / max(len(orders), 1)
