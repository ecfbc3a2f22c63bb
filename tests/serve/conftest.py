"""A server whose pictures cost nothing, so that what is tested is what stands around them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import pytest
import torch
import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from PIL import Image
from torch import Tensor

from cascade.config.folders import CascadeManifest, read_manifest, read_stage_config
from cascade.config.sample import SampleOptions
from cascade.config.serve import BatchConfig, LimitConfig, ServeConfig
from cascade.config.stage import StageConfig
from cascade.data.images import to_pil
from cascade.request import Request
from cascade.serve.app import create_app
from cascade.serve.metrics import Metrics
from cascade.serve.models import Models, Unknown
from cascade.serve.scheduler import Counts, Scheduler
from cascade.serve.ticket import (
    Begun,
    Cancelled,
    Drawn,
    Ended,
    Order,
    Preview,
    Sink,
    Stepped,
    Ticket,
    TooLate,
)

STEPS = 4  # of a picture


class FakeModels(Models):
    """Two models, of whose cascade the settings alone are read."""

    def __init__(self, folder: Path) -> None:
        self.manifest_of_all = read_manifest(folder)
        self.stages = [read_stage_config(folder / name) for name in self.manifest_of_all.stages]
        self.closed = False
        self.damage: Exception | None = None

    def names(self) -> list[str]:
        return ["tiny", "tiny:dog"]

    def configs(self, model: str) -> Sequence[StageConfig]:
        if self.damage is not None:
            raise self.damage
        if model not in self.names():
            raise Unknown(model)
        return self.stages

    def manifest(self, model: str) -> CascadeManifest:
        return self.manifest_of_all

    def exact(self, model: str) -> bool:
        return True

    def request(
        self, model: str, prompt: str, seeds: Sequence[int], options: SampleOptions
    ) -> Request:
        return Request.of(self.configs(model), prompt, seeds, options)

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def noise(seed: int, size: tuple[int, int]) -> Tensor:
    """The picture of a seed, C H W."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.rand((3, size[1], size[0]), generator=generator) * 2 - 1


class FakeScheduler(Scheduler):
    """One order after another, a step when `go` allows it."""

    def __init__(self, models: FakeModels, metrics: Metrics) -> None:
        super().__init__(models, BatchConfig(), LimitConfig(), metrics)
        self.metrics = metrics
        self.go = threading.Event()
        self.go.set()
        self.refuses: Exception | None = None
        self.fails: Exception | None = None
        self.orders: list[Order] = []
        self.steps = 0
        self.live: dict[str, Ticket] = {}
        self._queue: Queue[Ticket | None] = Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, order: Order, sink: Sink) -> Ticket:
        if self.refuses is not None:
            raise self.refuses
        ticket = Ticket(order, sink)
        self.orders.append(order)
        self.live[order.id] = ticket
        self._queue.put(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        ticket.cancelled.set()

    def counts(self) -> Counts:
        waiting: dict[str, int] = {}
        for ticket in list(self.live.values()):
            model = ticket.order.model
            waiting[model] = waiting.get(model, 0) + len(ticket.order.request.seeds)
        return Counts(waiting, {}, {})

    def warm_up(self) -> None:
        self.go.wait()

    def drain(self, seconds: float) -> bool:
        return True

    def stop(self) -> None:
        for ticket in list(self.live.values()):
            ticket.cancelled.set()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (ticket := self._queue.get()) is not None:
            error = None
            try:
                self._draw(ticket)
            except Exception as caught:  # noqa: BLE001
                error = caught
            del self.live[ticket.order.id]
            self.metrics.ended(ticket.order.model, "drawn" if error is None else "failed")
            ticket.sink(Ended(error))

    def _draw(self, ticket: Ticket) -> None:
        order, tell = ticket.order, ticket.sink
        tell(Begun())
        seeds = order.request.seeds
        for done in range(STEPS * len(seeds)):
            while not self.go.wait(0.01):
                self._check(ticket)
            self._check(ticket)
            self.steps += 1
            at, step = divmod(done, STEPS)
            tell(Stepped(done + 1, STEPS * len(seeds)))
            if step < order.previews:
                tell(Preview(at, step, "base16", noise(seeds[at], order.request.size)))
            if step == STEPS - 1:
                factor = 2 ** (len(order.request.settings) - 1)
                width, height = (side * factor for side in order.request.size)
                tell(Drawn(at, noise(seeds[at], (width, height))))

    def _check(self, ticket: Ticket) -> None:
        if ticket.cancelled.is_set():
            raise Cancelled
        if time.monotonic() > ticket.order.deadline:
            raise TooLate
        if self.fails is not None:
            raise self.fails


@dataclass
class Served:
    """A server, and what stands behind it."""

    app: FastAPI
    models: FakeModels
    scheduler: FakeScheduler
    url: str = ""

    def client(self, key: str = "none", **options: object) -> OpenAI:
        """The official client, which repeats nothing by itself."""
        settings = {"max_retries": 0, "timeout": 30.0, **options}
        return OpenAI(api_key=key, base_url=f"{self.url}/v1", **settings)  # type: ignore[arg-type]

    def picture(self, seed: int, side: int = 32) -> Image.Image:
        """What is drawn for a seed."""
        return to_pil(noise(seed, (side, side))[None])[0]

    def idle(self) -> bool:
        """Wait until nothing is drawn; return whether that came about."""
        for _ in range(500):
            if not self.scheduler.live:
                return True
            time.sleep(0.01)
        return False


@pytest.fixture
def make(tiny_cascade: Path) -> Callable[..., Served]:
    """Make an application over pictures that cost nothing."""

    def made(**settings: object) -> Served:
        models, metrics = FakeModels(tiny_cascade), Metrics()
        scheduler = FakeScheduler(models, metrics)
        config = ServeConfig(**settings)
        return Served(create_app(models, scheduler, config, metrics), models, scheduler)

    return made


@pytest.fixture
def run() -> Callable[..., AbstractContextManager[str]]:
    """Run an application on loopback, in a thread, and return its address."""

    @contextmanager
    def running(app: FastAPI) -> Iterator[str]:
        config = uvicorn.Config(
            app, port=0, lifespan="on", log_config=None, timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    return running


@pytest.fixture
def serve(
    make: Callable[..., Served], run: Callable[..., AbstractContextManager[str]]
) -> Callable[..., AbstractContextManager[Served]]:
    """Serve pictures that cost nothing."""

    @contextmanager
    def running(**settings: object) -> Iterator[Served]:
        served = make(**settings)
        with run(served.app) as served.url:
            try:
                yield served
            finally:
                served.scheduler.go.set()

    return running
