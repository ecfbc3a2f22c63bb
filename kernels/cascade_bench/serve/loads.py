"""Load on a server: how much it draws, and what becomes of more than that."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias

from cascade.progress import say
from cascade_bench.serve.counters import left_over
from cascade_bench.serve.load import (
    Answer,
    Clients,
    Shot,
    clients,
    closed_loop,
    drawn_at_random,
    open_loop,
    poisson,
)
from cascade_bench.serve.process import MemoryWatch, Server
from cascade_bench.serve.records import Load, Outcome
from cascade_bench.settings import ServeBenchConfig

Sending: TypeAlias = Callable[[Clients, Iterable[Shot]], Coroutine[Any, Any, list[Answer]]]

CAPACITY: Final = 3
"""Requests of each client by which the capacity is found."""


@dataclass
class Bench:
    """What the parts of a measurement share.

    Attributes:
        scratch: a folder for files of the servers.
        asked: fields of every request.
        seen: by what was asked, the first picture that came of it.
    """

    config: ServeBenchConfig
    scratch: Path
    asked: Mapping[str, Any]
    seen: dict[str, str] = field(default_factory=dict)

    def send(
        self, server: Server, shots: Sequence[Shot], sending: Sending, retries: int = 0
    ) -> list[Answer]:
        """Send requests to a server as its clients do."""

        async def sent() -> list[Answer]:
            keys, patience = server.keys[:-1], self.config.patience
            async with clients(server.url, keys, patience, retries) as asking:
                return await sending(asking, shots)

        return asyncio.run(sent())

    def loaded(
        self, server: Server, shots: Sequence[Shot], sending: Sending, asked: float | None
    ) -> Load:
        """Send requests and watch the server meanwhile.

        Args:
            asked: pictures a second that they ask for.
        """
        begun = time.monotonic()
        with MemoryWatch(server) as watch:
            answers = self.send(server, shots, sending, self.config.retries)
        drawn = [answer for answer in answers if answer.outcome == "drawn"]
        drawn.sort(key=lambda answer: answer.ended)
        outcomes: dict[Outcome, int] = {}
        for answer in answers:
            outcomes[answer.outcome] = outcomes.get(answer.outcome, 0) + 1
        return Load(
            asked=asked,
            seconds=max(answer.ended for answer in answers) - begun,
            pictures=sum(answer.shot.pictures for answer in drawn),
            outcomes=outcomes,
            latencies=tuple(answer.seconds for answer in drawn),
            lag=max(answer.lag for answer in answers),
            unadvised=sum(not answer.advised for answer in answers),
            different=self.different(answers),
            memory=tuple(watch.series),
            left_over=left_over(server),
            told=tuple(dict.fromkeys(answer.told for answer in answers if answer.told))[:_TOLD],
        )

    def different(self, answers: Iterable[Answer]) -> int:
        """Count pictures that are not what the same request gave before."""
        count = 0
        for answer in answers:
            for place, digest in enumerate(answer.digests()):
                shot = answer.shot
                key = f"{shot.prompt} {shot.seed + place} {sorted(shot.asked.items())}"
                count += self.seen.setdefault(key, digest) != digest
        return count


_TOLD: Final = 5
"""Errors that are kept."""


def capacity(bench: Bench, server: Server) -> Load:
    """Let every client ask again as soon as it has its picture."""
    config, chance = bench.config, Random(bench.config.seed)
    number = CAPACITY * config.clients
    shots = [drawn_at_random(chance, config.clients, bench.asked) for _ in range(number)]
    # The keys take turns, as the clients do: none is refused for what another asks.
    turns = [replace(shot, client=place) for place, shot in enumerate(shots)]
    load = bench.loaded(server, turns, closed_loop, None)
    say(f"{server.name} draws {load.rate:.3g} pictures a second.")
    return load


def loads(bench: Bench, server: Server, rate: float) -> list[Load]:
    """Let requests arrive at several rates, whatever becomes of those before them."""
    config = bench.config
    found: list[Load] = []
    for place, factor in enumerate(config.loads):
        seed = config.seed + place
        asked = factor * rate
        shots = poisson(asked, config.seconds, seed, config.clients, bench.asked)
        found.append(bench.loaded(server, shots, open_loop, asked))
        say(f"Asked for {factor:g} of that, {server.name} draws {found[-1].rate:.3g}.")
    return found
