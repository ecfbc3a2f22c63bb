"""Calls of networks: made by the thread that asks for them, or some at a time in threads beside it.

On a CPU several calls of one thread each draw more than one call on all cores, whose threads wait
for each other in every layer.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from cascade.serve.lanes import ask
from cascade.serve.picture import Picture


@dataclass(frozen=True, eq=False)
class Call:
    """A call that has ended.

    Attributes:
        group: the pictures that shared it.
        rows: that they asked for.
        answers: for each, or what went wrong for it.
        seconds: that it took.
        beside: how many calls were made at that time, this one included.
    """

    group: Sequence[Picture]
    rows: int
    answers: Sequence[Tensor | Exception]
    seconds: float
    beside: int


class Calls:
    """Makes at most `number` calls at a time; its methods are called from one thread.

    Args:
        ended: called from any thread when a call has ended.
    """

    def __init__(self, number: int, ended: Callable[[], None]) -> None:
        self._number, self._ended = number, ended
        self._pool = ThreadPoolExecutor(number, "cascade-call") if number > 1 else None
        self._running: set[Future[Call]] = set()

    @property
    def free(self) -> int:
        """Return how many more can be made now."""
        return self._number - len(self._running)

    @property
    def any_ended(self) -> bool:
        """Return whether there is one to take."""
        return any(call.done() for call in self._running)

    def begin(self, group: Sequence[Picture], rows: int | None) -> None:
        """Ask for pictures that share a call, filled up to some rows; see `lanes.ask`."""
        for picture in group:
            picture.in_call = True
        beside = len(self._running) + 1
        if self._pool is not None:
            call = self._pool.submit(_made, group, rows, beside)
        else:
            call = Future()
            call.set_result(_made(group, rows, beside))
        self._running.add(call)
        call.add_done_callback(lambda call: self._ended())

    def take(self) -> list[Call]:
        """Return those that have ended; their pictures can be asked for again."""
        done = [call for call in self._running if call.done()]
        self._running.difference_update(done)
        ended = [call.result() for call in done]
        for call in ended:
            for picture in call.group:
                picture.in_call = False
        return ended

    def close(self) -> list[Call]:
        """Wait for all, and return them; no more can be made."""
        wait(self._running)
        if self._pool is not None:
            self._pool.shutdown()
        return self.take()


def _made(group: Sequence[Picture], rows: int | None, beside: int) -> Call:
    start = perf_counter()
    wanted = sum(picture.drawing.rows for picture in group)
    answers = ask(group, rows)
    return Call(group, wanted, answers, perf_counter() - start, beside)
