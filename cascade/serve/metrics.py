"""Figures of a server for Prometheus.

Labels are names of models, stages and routes and words of this program, never what a client sends.
"""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from cascade.serve.scheduler import Counts
from cascade.serve.watch import Outcome

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ROWS: Final = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)


class Metrics:
    """A server's figures, in a registry of their own; a `Watch` of its scheduler."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._steps = self._histogram("step", "A network's call.", ("model", "stage"))
        self._rows = Histogram(
            "cascade_batch_rows",
            "Rows of a network's call.",
            ("model", "stage"),
            buckets=_ROWS,
            registry=self.registry,
        )
        self._pictures = Histogram(
            "cascade_batch_pictures",
            "Pictures that shared a network's call.",
            ("model", "stage"),
            buckets=_ROWS,
            registry=self.registry,
        )
        self._waits = self._histogram("queue_wait", "A picture's time in the queue.", ("model",))
        self._draws = self._histogram("drawing", "A picture's time from queue to end.", ("model",))
        self._ends = self._counter("requests", "Requests for pictures, ended.", "model", "outcome")
        self._texts = self._counter(
            "texts", "Prompts looked up for a stage; kept ones needed no encoder.", "model", "kept"
        )
        self._answers = self._counter("http_requests", "Answers.", "route", "method", "status")
        self._refused = self._counter("refused", "Requests that found no room.", "reason")
        self._open = Gauge(
            "cascade_http_streams", "Open streams of events.", registry=self.registry
        )

    def _histogram(self, name: str, what: str, labels: tuple[str, ...]) -> Histogram:
        name = f"cascade_{name}_seconds"
        return Histogram(name, what, labels, buckets=_SECONDS, registry=self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"cascade_{name}", what, labels, registry=self.registry)

    def step(self, model: str, stage: str, pictures: int, rows: int, seconds: float) -> None:
        """Note a call of a network."""
        self._steps.labels(model, stage).observe(seconds)
        self._rows.labels(model, stage).observe(rows)
        self._pictures.labels(model, stage).observe(pictures)

    def text(self, model: str, kept: bool) -> None:
        """Note a prompt for a stage."""
        self._texts.labels(model, str(kept).lower()).inc()

    def waited(self, model: str, seconds: float) -> None:
        """Note how long a picture has waited."""
        self._waits.labels(model).observe(seconds)

    def drawn(self, model: str, seconds: float) -> None:
        """Note how long a picture was drawn."""
        self._draws.labels(model).observe(seconds)

    def ended(self, model: str, outcome: Outcome) -> None:
        """Note how an order ended."""
        self._ends.labels(model, outcome).inc()

    def answered(self, route: str, method: str, status: int) -> None:
        """Note an answer.

        Args:
            route: as the application has it, not the address that was asked for.
        """
        self._answers.labels(route, method, str(status)).inc()

    def refused(self, reason: str) -> None:
        """Note that there was no room for a request, by its error's code."""
        self._refused.labels(reason).inc()

    def follow(self, opened: bool) -> None:
        """Note that a stream of events was opened, or closed."""
        self._open.inc(1 if opened else -1)

    def observe(
        self, counts: Callable[[], Counts], ready: Callable[[], bool], kept: Callable[[], int]
    ) -> None:
        """Show what is looked up whenever the figures are read.

        Args:
            counts: of the scheduler.
            ready: whether the server is.
            kept: bytes of kept pictures.
        """
        self.registry.register(_Now(counts, ready, kept))

    def text_format(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is true at this moment."""

    def __init__(
        self, counts: Callable[[], Counts], ready: Callable[[], bool], kept: Callable[[], int]
    ) -> None:
        self._counts, self._ready, self._kept = counts, ready, kept

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return nothing: registering must not ask the scheduler."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the figures."""
        counts = self._counts()
        places = (
            ("waiting", "Pictures in the queue.", counts.waiting),
            ("drawing", "Pictures being drawn.", counts.drawing),
        )
        for name, what, by_model in places:
            family = GaugeMetricFamily(f"cascade_pictures_{name}", what, labels=("model",))
            for model, count in by_model.items():
                family.add_metric((model,), count)
            yield family
        yield GaugeMetricFamily(
            "cascade_clients", "Clients with pictures in the queue or drawn.", len(counts.clients)
        )
        yield GaugeMetricFamily("cascade_ready", "Whether /ready says so.", int(self._ready()))
        yield GaugeMetricFamily("cascade_kept_bytes", "Of finished jobs' files.", self._kept())
