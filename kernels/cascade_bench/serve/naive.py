"""The server that people write first: a pipeline behind a lock, one request after another.

    python -m cascade_bench.serve.naive JOB PORT

JOB is a file that holds a `Job`. It answers as the OpenAI Images API does, and tells in a header
how long a request has waited for the lock.
"""

import base64
import io
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from cascade.config.base import Frozen
from cascade.data.images import to_pil
from cascade.errors import UserError
from cascade.files import read_json
from cascade.pipeline import Cascade
from cascade_bench.cold_start import PROMPT
from cascade_bench.pipelines import Drawer, diffusers_drawer
from cascade_bench.serve.load import BEGUN, GENERATE
from cascade_bench.serve.process import HOST


class Job(Frozen):
    """Who draws, and what.

    Attributes:
        provider: one of `NAIVE`.
        folder: of the cascade.
        steps: of each stage; the checkpoint's own if None.
        device: where it is drawn.
    """

    provider: str
    folder: Path
    steps: int | None
    device: str


class Wanted(BaseModel):
    """The fields that it reads."""

    prompt: str
    seed: int = 0
    n: Annotated[int, Field(gt=0)] = 1


def eager(job: Job) -> Drawer:
    """Draw with our cascade, all pictures of a request at once."""
    cascade = Cascade.load(job.folder, job.device)
    return lambda prompt, seeds: cascade.sample(prompt, seeds, steps=job.steps).stages


def diffusers(job: Job) -> Drawer:
    """Draw with diffusers' pipelines, all pictures of a request at once."""
    return diffusers_drawer(job.folder, job.steps, job.device)


NAIVE: Final[Mapping[str, Callable[[Job], Drawer]]] = {"eager": eager, "diffusers": diffusers}


def create_app(draw: Drawer) -> FastAPI:
    """Return the server's application."""
    app, lock = FastAPI(), threading.Lock()

    @app.get("/ready")
    def ready() -> str:
        return "ready"

    @app.post(GENERATE)
    def generate(wanted: Wanted, response: Response) -> dict[str, Any]:
        arrived = time.monotonic()
        with lock:
            response.headers[BEGUN] = f"{time.monotonic() - arrived:.3f}"
            seeds = range(wanted.seed, wanted.seed + wanted.n)
            pictures = list(draw(wanted.prompt, seeds).values())[-1]
        return {"created": int(time.time()), "data": [{"b64_json": b} for b in _png(pictures)]}

    return app


def _png(pictures: Any) -> list[str]:
    """Encode B C H W as our server does."""
    found: list[str] = []
    for image in to_pil(pictures):
        file = io.BytesIO()
        image.save(file, format="PNG")
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


def main(path: str, port: str) -> None:
    """Serve until it is ended."""
    job = Job.parse(read_json(Path(path)), path)
    draw = NAIVE[job.provider](job)
    draw(PROMPT, [0])  # warm before it says that it is ready
    uvicorn.run(create_app(draw), host=HOST, port=int(port), log_level="warning")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
