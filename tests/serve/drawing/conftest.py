"""Small models to serve, and ears for what is told of orders."""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.folders import CascadeManifest
from cascade.config.sample import SampleOptions
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.serve.library import Library
from cascade.serve.models import Models
from cascade.serve.ticket import Drawn, Ended, Event, Order, Preview

LENGTH = 16  # tokens, as many as the small cascade reads


class RowByRow(nn.Module):
    """A network whose rows do not depend on each other, as an engine's: each is asked alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[int] = []  # of each call
        self.before: Callable[[Tensor], None] = lambda x: None

    def forward(self, *inputs: Tensor | None) -> Tensor:
        x, t, text, mask, *low = (one for one in inputs if one is not None)
        self.rows.append(len(x))
        self.before(x)
        short = LENGTH - text.shape[1]
        text, mask = F.pad(text, (0, 0, 0, short)), F.pad(mask, (0, short), value=False)
        rows = [[one[i : i + 1] for one in (x, t, text, mask, *low)] for i in range(len(x))]
        return torch.cat([self.network(*row) for row in rows])


@dataclass
class Fake:
    """A library in memory.

    Attributes:
        made: its cascades.
        exact: as of `Library`.
        sizes: bytes of a cascade; 0 by default.
        shared: bytes that the first open one takes besides, for all.
    """

    made: dict[str, Cascade]
    exact: bool = True
    sizes: dict[str, int] = field(default_factory=dict)
    shared: int = 0
    revisions: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    opened: list[str] = field(default_factory=list)
    open_now: set[str] = field(default_factory=set)

    def names(self) -> Sequence[str]:
        return [*self.made]

    def configs(self, name: str) -> Sequence[StageConfig]:
        self._check(name)
        return self.made[name].configs

    def manifest(self, name: str) -> CascadeManifest:
        self._check(name)
        return self.made[name].manifest

    def revision(self, name: str) -> str:
        return self.revisions.get(name, "first")

    def weight_bytes(self, name: str) -> int:
        self._check(name)
        own = 0 if name in self.open_now else self.sizes.get(name, 0)
        return own + (0 if self.open_now else self.shared)

    def open(self, name: str) -> Cascade:
        self._check(name)
        self.opened.append(name)
        self.open_now.add(name)
        return self.made[name]

    def close(self, name: str) -> None:
        self.open_now.discard(name)

    def _check(self, name: str) -> None:
        if name not in self.made or name in self.damaged:
            raise UserError(f"There is no '{name}'; take another.")


@dataclass
class Heard:
    """What was told of an order."""

    events: list[Event] = field(default_factory=list)
    when: Callable[[Event], None] = lambda event: None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.when(event)

    def of(self, kind: type) -> list[Event]:
        """What was told of a kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def images(self) -> dict[int, Tensor]:
        """The pictures."""
        return {event.picture: event.image for event in self.events if isinstance(event, Drawn)}

    @property
    def previews(self) -> list[Preview]:
        """The previews."""
        return [event for event in self.events if isinstance(event, Preview)]

    @property
    def error(self) -> Exception | None:
        """How it ended: once, and last."""
        ends = [event for event in self.events if isinstance(event, Ended)]
        assert len(ends) == 1
        assert self.events[-1] is ends[0]
        return ends[0].error


@pytest.fixture(scope="session")
def cascade(tiny_cascade: Path) -> Cascade:
    """The small cascade; its weights stay as they are."""
    return Cascade.load(tiny_cascade)


@pytest.fixture
def by_rows(cascade: Cascade) -> Cascade:
    """The small cascade on networks whose rows do not depend on each other."""
    stages = [stage.with_network(RowByRow(stage.network)) for stage in cascade.stages]
    return Cascade(cascade.manifest, cascade.encoder, stages)


@pytest.fixture
def fake() -> Callable[..., Fake]:
    """Make a library; arguments as of `Fake`."""
    return Fake


@pytest.fixture
def served(fake: Callable[..., Fake], by_rows: Cascade) -> Models:
    """The small cascade on an exact engine, as the model "tiny"."""
    return Models({"tiny": fake({"": by_rows})})


@pytest.fixture
def unpinned(served: Models) -> Callable[[], bool]:
    """Say whether nobody holds a model."""
    return lambda: not any(held.pins for held in served._shelf._held.values())


@pytest.fixture
def models() -> Callable[..., Models]:
    """Make models of libraries."""

    def made(libraries: Mapping[str, Library], **arguments: object) -> Models:
        return Models(libraries, **arguments)  # type: ignore[arg-type]

    return made


@pytest.fixture
def order() -> Callable[..., Order]:
    """Make an order of a model; by default one picture that has all the time."""
    numbers = itertools.count()

    def made(
        models: Models,
        model: str = "tiny",
        prompt: str = "a dog",
        seeds: Iterable[int] = (0,),
        client: str = "somebody",
        seconds: float = 3600.0,
        previews: int = 0,
        **options: object,
    ) -> Order:
        asked = SampleOptions(**options)
        request = models.request(model, prompt, [*seeds], asked)
        deadline = time.monotonic() + seconds
        return Order(str(next(numbers)), model, request, client, deadline, previews)

    return made


@pytest.fixture
def heard() -> type[Heard]:
    """A sink that keeps what it is told."""
    return Heard


@pytest.fixture
def alone() -> Callable[[Cascade, Order], dict[int, Tensor]]:
    """Draw the pictures of an order as `cascade sample` draws each alone."""

    def drawn(cascade: Cascade, order: Order) -> dict[int, Tensor]:
        one_by_one = replace(order.request, batch_size=1)
        return {rows.start: output.tensor[0] for rows, output in cascade.sample_batches(one_by_one)}

    return drawn
