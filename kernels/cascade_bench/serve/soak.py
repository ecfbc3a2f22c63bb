"""Clients that leave at any time, and servers that end while they work."""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from cascade.progress import say
from cascade_bench.serve.load import Answer, Shot, clients, drawn_at_random, open_loop
from cascade_bench.serve.loads import Bench
from cascade_bench.serve.process import Program, Server, serving
from cascade_bench.serve.records import Ending, Load, Outcome

_MANY: Final = 3
"""Pictures of one request at most; streams are of one."""

_MIDDLE: Final = 1.0
"""Seconds that a server has worked when it is told to end."""


def soak(bench: Bench, server: Server, capacity: Load) -> Load:
    """Send requests at the server's capacity, of which some clients leave; streams and others."""
    rate, wait = capacity.rate, statistics.median(capacity.latencies)
    config, chance = bench.config, random.Random(bench.config.seed)
    shots: list[Shot] = []
    at = pictures = 0.0
    while at < config.soak:
        shot = _random(bench, chance, at, wait)
        shots.append(shot)
        pictures += shot.pictures
        at += chance.expovariate(rate / shot.pictures)
    load = bench.loaded(server, shots, open_loop, pictures / config.soak)
    say(f"{len(shots)} requests in {config.soak:.0f} s: {load.outcomes}.")
    return load


def _random(bench: Bench, chance: random.Random, at: float, wait: float) -> Shot:
    config = bench.config
    streamed = chance.random() < config.streamed
    leaves = chance.random() < config.leaving
    return replace(
        drawn_at_random(chance, config.clients, bench.asked),
        at=at,
        pictures=1 if streamed else chance.randint(1, min(_MANY, config.waiting)),
        streamed=streamed,
        # By then some wait, some are drawn, and some have their picture.
        leaves=chance.expovariate(1 / wait) if leaves else None,
    )


def endings(bench: Bench, program: Program, server: Server) -> dict[str, Any]:
    """End a server by SIGTERM while it works, and kill another one."""
    ended = _ended(bench, server, kill=False)
    say(f"SIGTERM: {ended.outcomes}, exit status {ended.status} after {ended.seconds:.1f} s.")
    with serving(program, bench.scratch) as server:
        killed = _ended(bench, server, kill=True)
        port = server.port
    say(f"SIGKILL: {killed.outcomes}, told after {killed.told or 0.0:.2f} s.")
    begun = time.monotonic()
    with serving(program, bench.scratch, port) as server:
        ready = time.monotonic() - begun
        shot = Shot(0.0, 0, "a cat", 0, asked=bench.asked)
        again = bench.send(server, [shot], open_loop)
    return {
        "SIGTERM": ended.model_dump(mode="json"),
        "SIGKILL": killed.model_dump(mode="json"),
        "restarted": {
            "ready": ready,
            "outcome": again[0].outcome,
            "seconds": again[0].seconds,
            "different": bench.different(again),
        },
    }


def _ended(bench: Bench, server: Server, *, kill: bool) -> Ending:
    """Let every client ask for a picture, and end the server amid them."""
    number = bench.config.clients
    shots = [
        Shot(0.0, client, "a cat", client, streamed=client % 2 == 1, asked=bench.asked)
        for client in range(number)
    ]

    async def sent() -> tuple[Sequence[Answer], float, int, float]:
        async with clients(server.url, server.keys[:-1], bench.config.patience) as asking:
            answers = asyncio.create_task(open_loop(asking, shots))
            await asyncio.sleep(_MIDDLE)
            told = time.monotonic()
            if kill:
                server.process.kill()
            waiting = asyncio.to_thread(server.terminate, 2 * bench.config.patience)
            status = await waiting
            ended = time.monotonic()
            return await answers, told, status, ended - told

    answers, told, status, seconds = asyncio.run(sent())
    outcomes: dict[Outcome, int] = {}
    for answer in answers:
        outcomes[answer.outcome] = outcomes.get(answer.outcome, 0) + 1
    without = [answer.ended - told for answer in answers if answer.outcome != "drawn"]
    return Ending(
        status=status, seconds=seconds, outcomes=outcomes, told=max(without, default=None)
    )
