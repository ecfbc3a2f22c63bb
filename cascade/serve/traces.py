"""Traces for OpenTelemetry, where they are asked for: what each request for pictures took.

FastAPI makes the spans of HTTP; below them stand a request's time in the queue and its drawing.
"""

from typing import Any

from cascade.errors import UserError
from cascade.serve.jobs import Job


class Traces:
    """Sends spans to a collector, in a thread of its own.

    Args:
        endpoint: of OTLP over HTTP, such as http://host:4318.

    Raises:
        UserError: the packages are not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise UserError(
                "Traces need OpenTelemetry's packages; install dreamcascade[traces], or leave "
                "traces out."
            ) from None
        self.provider: TracerProvider = TracerProvider(
            resource=Resource.create({"service.name": "cascade serve"})
        )
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer("cascade.serve")

    def here(self) -> Any:
        """Return the context of the request that is answered now."""
        from opentelemetry import context

        return context.get_current()

    def record(self, job: Job, context: Any) -> None:
        """Send the spans of a job that has ended, below the request that made it."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        ended = job.ended or job.created
        span = self._tracer.start_span("pictures", context, start_time=_nanoseconds(job.created))
        span.set_attributes(
            {
                "cascade.job": job.id,
                "cascade.model": job.order.model,
                "cascade.pictures": job.asked.count,
                "cascade.steps": job.progress.of,
                "cascade.status": job.status,
            }
        )
        if job.status == "failed":
            span.set_status(Status(StatusCode.ERROR))
        below = set_span_in_context(span)
        begun = job.begun or ended
        for name, start, end in (("queued", job.created, begun), ("drawn", begun, ended)):
            part = self._tracer.start_span(name, below, start_time=_nanoseconds(start))
            part.end(_nanoseconds(end))
        span.end(_nanoseconds(ended))

    def close(self) -> None:
        """Send what is left."""
        self.provider.shutdown()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
