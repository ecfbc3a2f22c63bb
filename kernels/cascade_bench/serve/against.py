"""Our server and naive ones, block by block in turn."""

import io
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from cascade.config.folders import read_manifest, read_stage_config
from cascade.config.stage import StageConfig
from cascade.diffusion.samplers import levels
from cascade.diffusion.schedule import make_schedule
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.progress import say
from cascade_bench.pipelines import sampler_of
from cascade_bench.serve.load import Shot, closed_loop, open_loop
from cascade_bench.serve.loads import Bench
from cascade_bench.serve.mixture import admission
from cascade_bench.serve.naive import Job
from cascade_bench.serve.process import Program, Server, serving
from cascade_bench.serve.records import Admission

EXACT: Final = "ours"
FAST: Final = "ours, fast"

_HIGHEST: Final = 1e9  # above every noise level
# RMS, grey levels: as of `cascade bench sample`.
_LIMIT: Final = 2.0
_PROMPT: Final = "a photo of a dog"


@dataclass(frozen=True)
class Contender:
    """Who draws in a block.

    Attributes:
        ours: whether it is our server.
        asked: fields of every request.
    """

    server: Server
    ours: bool
    asked: Mapping[str, Any]


def against(bench: Bench, program: Program, folder: Path, naive: Sequence[str]) -> dict[str, Any]:
    """Let servers draw the same pictures in turn; return what a picture takes, and admissions."""
    configs = [read_stage_config(folder / name) for name in read_manifest(folder).stages]
    with ExitStack() as running:
        ours = running.enter_context(serving(program, bench.scratch))
        fast = {**bench.asked, **late_guidance(configs, bench.config.steps)}
        contenders = {
            EXACT: Contender(ours, True, bench.asked),
            FAST: Contender(ours, True, fast),
        }
        for name in naive:
            started = serving(naive_program(bench, name, folder), bench.scratch)
            server = running.enter_context(started)
            contenders[name] = Contender(server, False, {})
        distances = _distances(bench, contenders)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        processor: dict[str, list[float]] = {name: [] for name in contenders}
        admitted: dict[str, list[Admission]] = {name: [] for name in contenders if name != FAST}
        for number in range(bench.config.rounds):
            for name in _turn(list(contenders), number):
                passed, taken = _block(bench, contenders[name])
                seconds[name].append(passed)
                processor[name].append(taken)
            for name in _turn(list(admitted), number):
                one = contenders[name]
                own = replace(bench, asked=one.asked)
                admitted[name].append(admission(own, one.server, one.ours))
            say(f"Round {number + 1} of {bench.config.rounds} is done.")
    return {
        "distances": distances,
        "seconds": seconds,
        "processor": processor,
        "admissions": {
            name: [one.model_dump(mode="json") for one in of] for name, of in admitted.items()
        },
    }


def naive_program(bench: Bench, name: str, folder: Path) -> Program:
    """Return how a naive server is started."""
    config = bench.config
    path = bench.scratch / f"{name}.json"
    job = Job(provider=name, folder=folder, steps=config.steps, device=config.device)
    write_bytes(job.model_dump_json().encode(), path)
    return Program(
        name,
        lambda port: ["cascade_bench.serve.naive", str(path), str(port)],
        config.threads_or_cores,
        ["none"] * (config.clients + 1),
    )


def late_guidance(configs: Sequence[StageConfig], steps: int | None) -> dict[str, Any]:
    """Return the field of a request that ends guidance after the first half of the steps."""
    found: dict[str, list[float]] = {}
    for config in configs:
        sampler = sampler_of(config, steps)
        down = levels(make_schedule(config.diffusion.schedule), sampler).tolist()
        guided = (len(down) - 1) - (len(down) - 1) // 2
        if sampler.guidance != 1 and guided < len(down) - 1:
            # Between the last level with guidance and the first one without.
            found[config.name] = [math.sqrt(down[guided - 1] * down[guided]), _HIGHEST]
    return {"guidance_interval": found} if found else {}


def _turn(names: list[str], number: int) -> list[str]:
    """Let another one begin in each round: who comes first meets a cooler processor."""
    first = number % len(names)
    return names[first:] + names[:first]


def _block(bench: Bench, contender: Contender) -> tuple[float, float]:
    """Return the seconds a picture while every client waits for one, passed and the processors'."""
    number, server = bench.config.clients, contender.server
    shots = [Shot(0.0, at, _PROMPT, at, asked=contender.asked) for at in range(number)]
    begun, before = time.monotonic(), server.processor()
    answers = bench.send(server, shots, closed_loop)
    taken = server.processor() - before
    seconds = max(answer.ended for answer in answers) - begun
    wrong = next((answer for answer in answers if answer.outcome != "drawn"), None)
    if wrong is not None:
        raise UserError(
            f"{server.name} has not drawn a picture: {wrong.outcome} {wrong.told}; give "
            "more --patience, or fewer --clients."
        )
    return seconds / number, taken / number


def _distances(bench: Bench, contenders: Mapping[str, Contender]) -> dict[str, float]:
    """Return how far pictures are from ours, RMS in grey levels.

    Raises:
        UserError: a naive server's is another picture.
    """
    drawn: dict[str, np.ndarray] = {}
    for name, contender in contenders.items():
        shot = Shot(0.0, 0, _PROMPT, 3, asked=contender.asked)
        (answer,) = bench.send(contender.server, [shot], open_loop)
        if not answer.pictures:
            raise UserError(f"{name} draws no picture: {answer.outcome} {answer.told}.")
        picture = Image.open(io.BytesIO(answer.pictures[0]))
        drawn[name] = np.asarray(picture, dtype=np.float64)
    found = {
        name: float(np.sqrt(np.square(picture - drawn[EXACT]).mean()))
        for name, picture in drawn.items()
    }
    for name, distance in found.items():
        if not contenders[name].ours and distance > _LIMIT:
            raise UserError(
                f"{name} draws another picture than ours, {distance:.1f} grey levels away: the "
                "bundle is not of the cascade; give the one that it was made of as --cascade."
            )
    return found
