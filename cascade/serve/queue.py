"""Orders in hand, and whose picture comes next: clients take turns, and so do their orders."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from cascade.serve.ticket import Order, Ticket


@dataclass(eq=False)
class Work:
    """An order in hand, and how far it is.

    Attributes:
        since: when it came, by the clock of its deadline.
        waiting: its pictures in the queue.
        admitted: how many have left the queue.
        passed: how many of others have left it while this one's model had no room.
        drawn: how many are done.
        steps: how many are done, of all its pictures and stages.
        ended: whether nothing more is told.
    """

    ticket: Ticket
    since: float
    waiting: deque[int]
    admitted: int = 0
    passed: int = 0
    drawn: int = 0
    steps: int = 0
    ended: bool = False

    @property
    def order(self) -> Order:
        """What is wanted."""
        return self.ticket.order

    @property
    def pictures(self) -> int:
        """How many are wanted."""
        return len(self.order.request.seeds)

    @property
    def of(self) -> int:
        """How many steps all of it takes."""
        settings = self.order.request.settings
        return self.pictures * sum(setting.sampler.count for setting in settings)


class Queue:
    """Pictures that wait. It locks nothing: one thread at a time."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, list[Work]] = OrderedDict()  # in the order of their turns

    def __len__(self) -> int:
        return sum(len(work.waiting) for works in self._clients.values() for work in works)

    def __iter__(self) -> Iterator[Work]:
        """Yield the orders that have pictures here, in the order of their turns.

        Of a client's orders the one with the fewest admitted pictures is first, then the oldest:
        one that wants a single picture does not wait for all of one that wants ten.
        """
        for works in self._clients.values():
            yield from sorted(works, key=lambda work: work.admitted)

    def add(self, work: Work) -> None:
        """Let an order's pictures wait."""
        self._clients.setdefault(work.order.client, []).append(work)

    def take(self, work: Work) -> int:
        """Take an order's next picture out; its client has its next turn after all others."""
        picture = work.waiting.popleft()
        work.admitted += 1
        self._clients.move_to_end(work.order.client)
        if not work.waiting:
            self.remove(work)
        return picture

    def remove(self, work: Work) -> None:
        """Take an order out, if it is here."""
        works = self._clients.get(work.order.client, [])
        if work in works:
            works.remove(work)
        if not works:
            self._clients.pop(work.order.client, None)

    def before(self, client: str, pictures: int) -> Iterator[tuple[Work, int]]:
        """Yield how many pictures of which orders leave before so many more of a client have."""
        own = sum(len(work.waiting) for work in self._clients.get(client, []))
        for name, works in self._clients.items():
            left = own if name == client else own + pictures
            for work in works:
                share = min(left, len(work.waiting))
                left -= share
                yield work, share
