"""The process around a server: its socket and its signals."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from cascade.config.serve import ServeConfig
from cascade.errors import UserError
from cascade.progress import say, spell
from cascade.serve.scheduler import Scheduler

_GOODBYE: Final = 5
"""Seconds for sending what is drawn, when the drain is over."""


class Server(uvicorn.Server):
    """Answers requests until it is told to end by a signal; a second one ends the process.

    Attributes:
        clean: whether every request has ended of itself.
    """

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], bool], told: str, patience: float
    ) -> None:
        """Keep what is called when it is to end, what to say when it has begun, and seconds."""
        super().__init__(config)
        self.clean = True
        self._drain = drain
        self._told = told
        self._patience = patience
        self._asked = False
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        say(self._told)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; nothing is done here, where a lock may be held."""
        if self._asked:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._asked = True

    async def on_tick(self, counter: int) -> bool:
        """Begin to drain where that was asked; several times a second."""
        if self._asked and self._draining is None:
            say(f"Ending: what was asked gets {spell(self._patience)}; a second signal ends now.")
            self._draining = asyncio.create_task(self._drained())
        return await super().on_tick(counter)

    async def _drained(self) -> None:
        """Answer on, while what was asked ends, then stop."""
        try:
            self.clean = await asyncio.to_thread(self._drain)
        finally:
            self.should_exit = True


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Take an address; whoever connects is refused until a server answers there.

    Raises:
        UserError: it is taken, or none of this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind)
    except OSError as error:
        raise UserError(
            f"There is no address '{host}' to listen at ({error.strerror}); give another --host."
        ) from None
    with taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(address)
        except OSError as error:
            raise UserError(
                f"Port {port} of {host} cannot be listened at ({error.strerror}); give another "
                "--port, or 0 for a free one."
            ) from None
        yield taken


def url(listener: socket.socket) -> str:
    """Return where a server is to be called."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: FastAPI, listener: socket.socket, scheduler: Scheduler, config: ServeConfig, told: str
) -> bool:
    """Answer requests until a signal; return whether all that was asked has been drawn.

    Args:
        app: starts and stops the scheduler.
        told: is said when it answers.
    """

    def drain() -> bool:
        app.state.desk.draining = True
        return scheduler.drain(config.drain)

    server = Server(_settings(app, config), drain, told, config.drain)
    server.run([listener])
    return server.clean


def _settings(app: FastAPI, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        # The ones that come with uvicorn itself: what is installed beside it changes nothing.
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing depends on where a client is
        # Idle ones too: a plain 503, far above where requests are refused with the reason.
        limit_concurrency=2 * config.limits.connections,
        timeout_graceful_shutdown=_GOODBYE,
    )
