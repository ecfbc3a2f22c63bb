"""What is looked at before a request is: where it comes from, how large it is, its id."""

import re
import time
import uuid
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cascade.serve.problems import Problem

_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:@/\s]+)(?::[0-9]{1,5})?")
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")

Told = Callable[[Scope, int, float], None]
"""Called with a request's scope, its status and the seconds it took."""


class Identified:
    """Give every request an id, its client's own where that is harmless, and tell of its end.

    `scope["state"]["id"]` is the id.
    """

    def __init__(self, app: ASGIApp, told: Told) -> None:
        self.app, self._told = app, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        own = Headers(scope=scope).get("x-request-id", "")
        id = own if _ID.fullmatch(own) else uuid.uuid4().hex
        scope.setdefault("state", {})["id"] = id
        begun, status = time.monotonic(), 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            await self.app(scope, receive, named)
        finally:
            self._told(scope, status, time.monotonic() - begun)


class Crowd:
    """Refuse requests while too many are answered already; whether the server lives is told still.

    Args:
        most: requests at a time.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self._most = app, most
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http" or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        if self._inside >= self._most:
            message = "Too many requests are answered already; ask again in a moment."
            await Problem(503, message, "server_busy", retry_after=1).response()(
                scope, receive, send
            )
            return
        self._inside += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._inside -= 1


class Guard:
    """Keep web pages away from a server without keys, and large bodies from every server.

    A page whose name was made to resolve to this machine sends its own name as Host, and any other
    page its Origin; a browser lets no page change these.

    Args:
        names: by which this server may be called, beside the address that a request came to; None
            where clients have keys, which no page knows.
        origins: pages that may call it.
        body: bytes of a body at most. Here by what its header says.
    """

    def __init__(
        self, app: ASGIApp, names: Iterable[str] | None, origins: Iterable[str], body: int
    ) -> None:
        self.app, self._body = app, body
        self._names = None if names is None else {_same(name) for name in (*_LOCAL, *names)}
        self._origins = {origin.rstrip("/").lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        problem = self._problem(scope)
        if problem is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await problem.response()(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _problem(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return Problem(400, "Content-Length is no number.", "invalid_header")
        if len(length) > 18 or int(length) > self._body:
            message = f"The body has more than {self._body} bytes; send less."
            return Problem(413, message, "body_too_large")
        if self._names is None:
            return None
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._called(hosts[0], scope):
            message = "This server is not called so; add the name to its --hosts, or give it keys."
            return Problem(403, message, "host_refused")
        origin = headers.get("origin")
        if origin is not None and not self._welcome(origin, hosts[0]):
            message = "This page may not call the server; add it to its --origins."
            return Problem(403, message, "origin_refused")
        return None

    def _called(self, host: str, scope: Scope) -> bool:
        match = _HOST.fullmatch(host)
        if match is None or self._names is None:
            return False
        # A page can have a name that resolves to the address, but it cannot be called the address.
        server: Any = scope.get("server") or ("", None)
        return _same(match[1]) in self._names | {_same(str(server[0]))}

    def _welcome(self, origin: str, host: str) -> bool:
        own = urlsplit(origin)
        same = own.scheme in ("http", "https") and own.netloc.lower() == host.lower()
        return same or origin.lower() in self._origins


def _same(name: str) -> str:
    """Return a name or address in the one way that it is compared in."""
    name = name.strip("[]").rstrip(".").lower()
    try:
        address = ip_address(name)
    except ValueError:
        return name
    return str(getattr(address, "ipv4_mapped", None) or address)
