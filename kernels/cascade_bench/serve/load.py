"""Clients of a server of pictures: what they send and when, and what becomes of it.

They speak the OpenAI Images API. One thread serves all of them, so that none keeps a processor
from the server.
"""

import asyncio
import base64
import hashlib
import io
import json
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx2
from PIL import Image

from cascade_bench.serve.records import Outcome

GENERATE: Final = "/v1/images/generations"
BEGUN: Final = "x-begun-after"
"""The naive server's header: the seconds that a request waited there."""

_HANGS: Final = 3.0  # times the patience, after which nothing is expected any more
_CONNECTED: Final = 10.0  # seconds within which a server on this machine takes a connection
_REFUSED: Final = (429, 503)
_LATE: Final = 504
_PROMPTS: Final = ("a photo of a dog", "a red car on the beach", "a cat", "two cups on a table")
_SEEDS: Final = 4


@dataclass(frozen=True)
class Shot:
    """A request.

    Attributes:
        at: seconds after the first.
        client: which one sends it.
        pictures: that it asks for.
        streamed: whether it reads events; for one picture.
        leaves: seconds after which the client closes its connection.
        asked: further fields of the body.
    """

    at: float
    client: int
    prompt: str
    seed: int
    pictures: int = 1
    streamed: bool = False
    leaves: float | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Return what is sent."""
        body = {"prompt": self.prompt, "seed": self.seed, "n": self.pictures, **self.asked}
        return body | {"stream": True, "partial_images": 2} if self.streamed else body


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        seconds: from the first time it was sent to its end.
        lag: seconds that it was sent too late.
        pictures: files, in the order of their seeds.
        begun: seconds until it was drawn; None where the server does not tell.
        advised: whether a refusal said when to come again.
        told: what went wrong.
    """

    shot: Shot
    outcome: Outcome
    seconds: float = 0.0
    lag: float = 0.0
    ended: float = 0.0  # time.monotonic()
    pictures: tuple[bytes, ...] = ()
    begun: float | None = None
    retry_after: float | None = None
    advised: bool = True
    told: str = ""

    def digests(self) -> list[str]:
        """Return a hash of every picture's pixels; what notes a file has does not count."""
        opened = [Image.open(io.BytesIO(picture)) for picture in self.pictures]
        return [hashlib.sha256(picture.tobytes()).hexdigest() for picture in opened]


class Clients:
    """Clients of one server; each has its key, where keys are given."""

    def __init__(
        self, http: httpx2.AsyncClient, keys: Sequence[str], patience: float, retries: int = 0
    ) -> None:
        self.http = http
        self.number = len(keys)
        self._keys = keys
        self._patience = patience
        self._retries = retries

    async def ask(self, shot: Shot, lag: float = 0.0) -> Answer:
        """Send a request, again where it is refused and that is wanted; never raises."""
        begun = time.monotonic()
        for left in reversed(range(self._retries + 1)):
            answer = await self._answer(shot)
            if answer.outcome != "refused" or not left:
                break
            await asyncio.sleep(answer.retry_after or 1.0)
        ended = time.monotonic()
        late = answer.outcome == "drawn" and ended - begun > self._patience
        outcome: Outcome = "late" if late else answer.outcome
        return replace(answer, outcome=outcome, seconds=ended - begun, lag=lag, ended=ended)

    def header(self, client: int) -> dict[str, str]:
        """Return the header by which a client is known."""
        return {"authorization": f"Bearer {self._keys[client % self.number]}"}

    async def _answer(self, shot: Shot) -> Answer:
        try:
            async with asyncio.timeout(shot.leaves or _HANGS * self._patience):
                return await (self._streamed(shot) if shot.streamed else self._whole(shot))
        except TimeoutError:
            return Answer(shot, "lost" if shot.leaves is None else "left", told="no answer")
        except httpx2.TransportError as error:
            return Answer(shot, "cut", told=repr(error))
        except (ValueError, KeyError) as error:
            return Answer(shot, "failed", told=f"no answer of this API: {error!r}")

    async def _whole(self, shot: Shot) -> Answer:
        headers = self.header(shot.client)
        response = await self.http.post(GENERATE, json=shot.body(), headers=headers)
        if response.status_code != httpx2.codes.OK:
            return _problem(shot, response)
        pictures = [base64.b64decode(one["b64_json"]) for one in response.json()["data"]]
        waited = response.headers.get(BEGUN)
        return _drawn(shot, pictures, None if waited is None else float(waited))

    async def _streamed(self, shot: Shot) -> Answer:
        headers, body = self.header(shot.client), shot.body()
        async with self.http.stream("POST", GENERATE, json=body, headers=headers) as response:
            if response.status_code != httpx2.codes.OK:
                await response.aread()
                return _problem(shot, response)
            async for name, told in events(response):
                if name.endswith(".completed"):
                    return _drawn(shot, [base64.b64decode(told["b64_json"])])
                if "error" in told:
                    late = told["error"].get("code") == "deadline_exceeded"
                    return Answer(shot, "late" if late else "failed", told=json.dumps(told))
        return Answer(shot, "cut", told="the events ended before the picture")


@asynccontextmanager
async def clients(
    url: str, keys: Sequence[str], patience: float, retries: int = 0
) -> AsyncIterator[Clients]:
    """Open clients, whose connections are as many as their requests."""
    many = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx2.Timeout(None, connect=_CONNECTED)
    # No proxy of the environment stands between this machine and itself.
    async with httpx2.AsyncClient(
        base_url=url, limits=many, timeout=timeout, trust_env=False
    ) as http:
        yield Clients(http, keys, patience, retries)


async def open_loop(asking: Clients, shots: Iterable[Shot]) -> list[Answer]:
    """Send every request at its time, whatever became of those before it."""
    start = time.monotonic()
    sent: list[asyncio.Task[Answer]] = []
    async with asyncio.TaskGroup() as group:
        for shot in shots:
            await asyncio.sleep(max(0.0, start + shot.at - time.monotonic()))
            lag = time.monotonic() - start - shot.at
            sent.append(group.create_task(asking.ask(shot, lag)))
    return [task.result() for task in sent]


async def closed_loop(asking: Clients, shots: Iterable[Shot]) -> list[Answer]:
    """Let each client send its next request when its last one is answered."""
    left = iter(shots)
    found: list[Answer] = []

    async def client() -> None:
        for shot in left:
            found.append(await asking.ask(shot))

    async with asyncio.TaskGroup() as group:
        for _ in range(asking.number):
            group.create_task(client())
    return found


async def events(response: httpx2.Response) -> AsyncIterator[tuple[str, Any]]:
    """Yield the name and the data of every server-sent event."""
    name = ""
    async for line in response.aiter_lines():
        kind, _, value = line.partition(":")
        if kind == "event":
            name = value.strip()
        elif kind == "data" and value.strip().startswith("{"):
            yield name, json.loads(value)


def poisson(
    rate: float, seconds: float, seed: int, number: int, asked: Mapping[str, Any]
) -> list[Shot]:
    """Draw one-picture requests of some clients that arrive at a rate, independently.

    They are as many as the rate says, at least one: a Poisson process given its number.
    """
    chance = random.Random(seed)
    times = sorted(chance.uniform(0.0, seconds) for _ in range(max(1, round(rate * seconds))))
    return [replace(drawn_at_random(chance, number, asked), at=at) for at in times]


def drawn_at_random(chance: random.Random, number: int, asked: Mapping[str, Any]) -> Shot:
    """Draw a client and what it asks for; of few pictures, so that the same ones come again."""
    prompt, seed = chance.choice(_PROMPTS), chance.randrange(_SEEDS)
    return Shot(0.0, chance.randrange(number), prompt, seed, asked=asked)


def _drawn(shot: Shot, pictures: Sequence[bytes], begun: float | None = None) -> Answer:
    if len(pictures) != shot.pictures or not all(pictures):
        return Answer(shot, "failed", told=f"{len(pictures)} pictures of {shot.pictures}")
    return Answer(shot, "drawn", pictures=tuple(pictures), begun=begun)


def _problem(shot: Shot, response: httpx2.Response) -> Answer:
    """Read an answer that is no picture."""
    told = f"{response.status_code} {response.text[:200]}"
    if response.status_code not in _REFUSED:
        return Answer(shot, "late" if response.status_code == _LATE else "failed", told=told)
    after = response.headers.get("retry-after")
    seconds = None if after is None else float(after)
    advised = seconds is not None
    return Answer(shot, "refused", retry_after=seconds, advised=advised, told=told)
