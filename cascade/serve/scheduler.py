"""Who is drawn next, and with whom: one thread that advances all pictures step by step."""

from collections.abc import Mapping
from dataclasses import dataclass

from cascade.config.serve import BatchConfig, LimitConfig
from cascade.serve.models import Models
from cascade.serve.ticket import Order, Sink, Ticket
from cascade.serve.watch import Watch


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


class Scheduler:
    """Draws orders; every method may be called from any thread.

    Networks are called in a thread of its own alone, and so are sinks.
    """

    def __init__(
        self,
        models: Models,
        batch: BatchConfig,
        limits: LimitConfig,
        watch: Watch | None = None,
    ) -> None:
        self._models = models

    def start(self) -> None:
        """Start the thread."""
        raise NotImplementedError

    def submit(self, order: Order, sink: Sink) -> Ticket:
        """Put all pictures of an order into the queue.

        `sink` then gets `Begun`, a `Stepped` per step, `Preview`s, a `Drawn` per picture, and at
        last, exactly once, `Ended`.

        Raises:
            Busy: the queue or the client's share of it is full, the order would be late, or the
                scheduler is drained; nothing will be told to `sink`.
        """
        raise NotImplementedError

    def cancel(self, ticket: Ticket) -> None:
        """End an order with `Cancelled` before its next step; does nothing where it has ended."""
        raise NotImplementedError

    def counts(self) -> Counts:
        """Return how many pictures wait and are drawn."""
        raise NotImplementedError

    def retry_after(self) -> float:
        """Return the seconds until a picture leaves the queue, by what drawing has taken so far."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Call every network of every model with every number of rows that can occur.

        It is done in the scheduler's thread, which must have been started; what is submitted
        meanwhile waits.

        Raises:
            UserError: a model cannot be opened or called.
        """
        raise NotImplementedError

    def drain(self, seconds: float) -> bool:
        """Refuse new orders; wait until those there have ended, and cancel the rest after a time.

        Returns:
            Whether all had ended by then.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Cancel all that is left, and end the thread."""
        raise NotImplementedError
