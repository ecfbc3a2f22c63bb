"""How long a one-picture request waits beside a large one."""

import asyncio
import time
from typing import Final

from cascade.errors import UserError
from cascade.progress import say
from cascade_bench.serve.load import Answer, Clients, Shot, clients, events
from cascade_bench.serve.loads import Bench
from cascade_bench.serve.process import Server
from cascade_bench.serve.records import Admission

JOBS: Final = "/v1/jobs/images"
ALONE: Final = "alone"
BESIDE: Final = "beside a large one"

_LATER: Final = 1.0
"""Seconds that the small request comes after the large one."""

_PROMPT: Final = "a photo of a dog"


def admissions(bench: Bench, server: Server) -> dict[str, list[Admission]]:
    """Let a one-picture request come alone and beside a large one, in turn."""
    found: dict[str, list[Admission]] = {ALONE: [], BESIDE: []}
    for number in range(bench.config.rounds):
        found[ALONE].append(alone(bench, server))
        found[BESIDE].append(admission(bench, server, jobs=True))
        say(f"Round {number + 1} of {bench.config.rounds} of the mixture is done.")
    return found


def alone(bench: Bench, server: Server) -> Admission:
    """Send a small request to a server that has nothing else to do."""

    async def measured() -> Answer:
        async with clients(server.url, server.keys[:-1], bench.config.patience) as asking:
            return await job(asking, Shot(0.0, 1, _PROMPT, 0, asked=bench.asked))

    answer = asyncio.run(measured())
    if answer.outcome != "drawn" or answer.begun is None:
        raise UserError(f"{server.name} has not drawn a picture: {answer.outcome} {answer.told}.")
    return Admission(begun=answer.begun, done=answer.seconds, large=None)


def admission(bench: Bench, server: Server, jobs: bool) -> Admission:
    """Send a large request and soon after it, by another client, a small one.

    Args:
        jobs: whether the server has jobs, whose events say when one is begun.
    """
    large = Shot(0.0, 0, _PROMPT, 100, bench.config.large, asked=bench.asked)
    small = Shot(_LATER, 1, _PROMPT, 0, asked=bench.asked)

    async def measured() -> tuple[Answer, Answer]:
        # The large one is never late: its latency is told.
        patience = bench.config.patience * bench.config.large
        async with clients(server.url, server.keys[:-1], patience) as asking:
            first = asyncio.create_task(asking.ask(large))
            await asyncio.sleep(_LATER)
            second = await (job(asking, small) if jobs else asking.ask(small))
            return await first, second

    first, second = asyncio.run(measured())
    for answer in (first, second):
        if answer.outcome != "drawn" or (answer is second and answer.begun is None):
            raise UserError(
                f"{server.name} has not drawn a small picture beside {large.pictures} others: "
                f"{answer.outcome} {answer.told}."
            )
    assert second.begun is not None  # looked at above
    return Admission(begun=second.begun, done=second.seconds, large=first.seconds)


async def job(asking: Clients, shot: Shot) -> Answer:
    """Make a job of a request, and read its events until it ends."""
    sent, headers = time.monotonic(), asking.header(shot.client)
    response = await asking.http.post(JOBS, json=shot.body(), headers=headers)
    if not response.is_success:
        return Answer(shot, "refused", told=response.text[:200])
    begun: float | None = None
    place = f"{response.headers['location']}/events"
    async with asking.http.stream("GET", place, headers=headers) as stream:
        async for name, told in events(stream):
            passed = time.monotonic() - sent
            last = name.rpartition(".")[2]
            if last == "started":
                begun = passed
            if last == "completed":
                return Answer(shot, "drawn", seconds=passed, begun=begun)
            if last in ("failed", "cancelled"):
                return Answer(shot, "failed", told=str(told)[:200])
    return Answer(shot, "cut", told="the job's events ended before it")
