"""A request on its way through the stages, and what is told of it.

Shapes: `C H W` pixels of one picture in [-1, 1].
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from cascade.request import Request


@dataclass(frozen=True)
class Order:
    """What a client asks for, checked.

    Attributes:
        id: unique.
        model: which cascade.
        request: prompts, seeds and settings of its pictures; the batch size is not read.
        client: who asks; clients take turns.
        deadline: `time.monotonic()` at which it is given up.
        previews: predictions of each picture that are shown while it is drawn, evenly over the
            steps of all stages.
    """

    id: str
    model: str
    request: Request
    client: str
    deadline: float
    previews: int = 0


@dataclass(frozen=True)
class Begun:
    """The first picture has left the queue."""


@dataclass(frozen=True)
class Stepped:
    """A step of one picture is done."""

    done: int  # steps of all its pictures and stages
    of: int


@dataclass(frozen=True)
class Preview:
    """What a picture looks like so far: a stage's prediction, or a stage's own picture."""

    picture: int
    number: int  # from 0, of the order's previews
    stage: str
    image: Tensor  # C H W, of the stage's size


@dataclass(frozen=True)
class Drawn:
    """A picture is done."""

    picture: int
    image: Tensor  # C H W, of the last stage's size


@dataclass(frozen=True)
class Ended:
    """Nothing more will be told.

    Attributes:
        error: None where all pictures are drawn; `Cancelled`, `TooLate`, or what went wrong.
    """

    error: Exception | None = None


Event: TypeAlias = Begun | Stepped | Preview | Drawn | Ended
Sink: TypeAlias = Callable[[Event], None]
"""Takes events, from the worker's thread; must return at once."""


class Cancelled(Exception):
    """Its client does not want it any more."""


class TooLate(Exception):
    """Its deadline has passed, or would have before it is drawn."""


class Busy(Exception):
    """There is no room for it in the queue.

    Attributes:
        retry_after: seconds after which there will be, by what drawing has taken so far.
        of_client: whether it is the client's own share that is full.
    """

    def __init__(self, retry_after: float, of_client: bool = False) -> None:
        super().__init__(f"the queue is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after
        self.of_client = of_client


@dataclass
class Ticket:
    """An order in the queue.

    Attributes:
        cancelled: set by anyone, at any time; between two calls of the network it ends.
    """

    order: Order
    sink: Sink
    cancelled: threading.Event = field(default_factory=threading.Event)
