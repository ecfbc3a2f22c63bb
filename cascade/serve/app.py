"""The application: what answers HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Final

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from cascade.config.serve import ServeConfig
from cascade.serve import health, logs, problems, routes
from cascade.serve.desk import Desk
from cascade.serve.guard import Crowd, Guard, Identified
from cascade.serve.keys import Keys
from cascade.serve.metrics import Metrics
from cascade.serve.models import Models
from cascade.serve.scheduler import Scheduler
from cascade.serve.traces import Traces

_METHODS: Final = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))


def create_app(
    models: Models, scheduler: Scheduler, config: ServeConfig, metrics: Metrics | None = None
) -> FastAPI:
    """Return the application that serves some models.

    While it runs, it starts the scheduler, warms it up, looks for changed models, and at the end
    lets what is drawn end, stops the scheduler and closes the models. `app.state.desk` is the
    `Desk`; whoever stops the server sets its `draining` first.

    Args:
        metrics: what the scheduler was given as its watch.

    Raises:
        UserError: the file of keys is wrong, or traces need packages that are not there.
    """
    metrics = metrics or Metrics()
    keys = Keys(config.keys)
    traces = Traces(config.traces) if config.traces else None
    desk = Desk(models, scheduler, config, keys, metrics, traces)
    metrics.observe(
        scheduler.counts, lambda: desk.ready and not desk.draining, lambda: desk.jobs.memory
    )

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        _warn_if_open(config)
        async with desk.running():
            yield

    app = FastAPI(
        title="dreamcascade",
        version="1",
        lifespan=life,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry={
            "tracer_provider": traces.provider if traces else None,
            "tracing": traces is not None,
            "operation_spans": False,
            "metrics": False,
            "logs": False,  # they would hold what clients send
        },
    )
    app.state.desk = desk
    problems.install(app)
    app.include_router(routes.router)
    app.include_router(health.router)
    _wrap(app, desk, config)
    return app


def _wrap(app: FastAPI, desk: Desk, config: ServeConfig) -> None:
    """Lay around an application what looks at every request; the last is the outermost."""

    def told(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        desk.metrics.answered(route, method, status)
        client = scope.get("client")
        logs.note(
            "request",
            request_id=scope["state"]["id"],
            method=method,
            route=route,
            status=status,
            seconds=round(seconds, 3),
            address=client[0] if client else None,
        )

    if config.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "location"],
        )
    # Counts what is read; the guard around it looks at what is announced.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=config.limits.body)
    names = None if desk.keys.needed else (config.host, *config.hosts)
    app.add_middleware(Crowd, most=config.limits.connections)
    app.add_middleware(Guard, names=names, origins=config.origins, body=config.limits.body)
    app.add_middleware(Identified, told=told)


def _warn_if_open(config: ServeConfig) -> None:
    """Say so where anyone in the network may draw."""
    if config.keys is None and not _loopback(config.host):
        logs.warn(
            f"Everyone who reaches {config.host} may draw; make keys (cascade serve-key NAME), or "
            "listen at 127.0.0.1."
        )


def _loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
