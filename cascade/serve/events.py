"""What clients are told of a job: as the OpenAI Images API has it, and as jobs have it."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from cascade.serve.jobs import Entry, Job, Progress

_STALLED: Final = 60.0  # seconds in which a client reads nothing, after which it counts as gone
_NO_TOKENS: Final = {  # pictures are made of pixels, and nothing is billed
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


class Stream(EventSourceResponse):
    """A stream of events; `left` is called once it is over, however it ends.

    Args:
        drain: seconds that it gets to end when the server is stopped.
    """

    def __init__(
        self, events: AsyncIterator[ServerSentEvent], left: Callable[[], None], drain: float
    ) -> None:
        super().__init__(
            events,
            sep="\n",
            shutdown_grace_period=drain,
            send_timeout=_STALLED,
            headers={"cache-control": "no-store"},
        )
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            return
        finally:
            self._left()


def answer(job: Job) -> bytes:
    """Return the pictures of a completed job as the OpenAI Images API does.

    `seed`, `seeds`, `model` and `exact` are extensions. A quality is not told, for there is one,
    and no tokens, for there are none.
    """
    seeds = job.order.request.seeds
    told = {
        "created": int(job.ended or job.created),
        "data": [{"b64_json": job.images[at], "seed": seed} for at, seed in enumerate(seeds)],
        "background": "opaque",
        "output_format": job.kind,
        "size": job.size,
        "model": job.order.model,
        "seeds": list(seeds),
        "exact": job.exact,
    }
    if job.asked.end_user is not None:
        told["safety_identifier"] = job.asked.end_user
    return json.dumps(told).encode()


def told(job: Job) -> dict[str, Any]:
    """Return how a job stands, without its pictures."""
    return {
        "id": job.id,
        "object": "image.job",
        "status": job.status,
        "model": job.order.model,
        "n": job.asked.count,
        "size": job.size,
        "seeds": list(job.order.request.seeds),
        "created_at": int(job.created),
        "started_at": None if job.begun is None else int(job.begun),
        "ended_at": None if job.ended is None else int(job.ended),
        "progress": {"done": job.progress.done, "of": job.progress.of},
        "error": job.problem.error.model_dump() if job.problem else None,
    }


async def as_openai(job: Job) -> AsyncIterator[ServerSentEvent]:
    """Tell of a job of one picture as the OpenAI Images API does."""
    own = {"seed": job.order.request.seeds[0], "model": job.order.model, "exact": job.exact}
    async for entry in job.follow():
        if not isinstance(entry, Entry):
            continue
        shared = _picture(job, entry) | {"quality": "auto", "background": "opaque"} | own
        if entry.kind == "partial_image":
            more = {"partial_image_index": entry.preview, "stage": entry.stage}
            yield _event("image_generation.partial_image", shared | more)
        elif entry.kind == "image":
            yield _event("image_generation.completed", shared | {"usage": _NO_TOKENS})
        elif job.problem is not None and entry.kind in ("failed", "cancelled"):
            yield _event("error", job.problem.body())


async def as_job(job: Job, after: int) -> AsyncIterator[ServerSentEvent]:
    """Tell of a job, behind the entry of a number."""
    async for entry in job.follow(after):
        if isinstance(entry, Progress):
            yield _event("image.job.progress", {"done": entry.done, "of": entry.of})
            continue
        status = "in_progress" if entry.kind == "started" else entry.kind
        what: dict[str, Any] = {"id": job.id, "status": status}
        if entry.picture is not None:
            what = _picture(job, entry) | {
                "picture": entry.picture,
                "seed": job.order.request.seeds[entry.picture],
            }
        if entry.kind == "partial_image":
            what |= {"partial_image_index": entry.preview, "stage": entry.stage}
        elif entry.kind in ("failed", "cancelled") and job.problem is not None:
            what |= job.problem.body()
        yield _event(f"image.job.{entry.kind}", what, entry.number)


def _picture(job: Job, entry: Entry) -> dict[str, Any]:
    return {
        "b64_json": entry.image,
        "created_at": int(entry.at),
        "size": entry.size,
        "output_format": job.kind,
    }


def _event(kind: str, what: Mapping[str, Any], number: int | None = None) -> ServerSentEvent:
    told = what if kind == "error" else {"type": kind, **what}
    id = None if number is None else str(number)
    return ServerSentEvent(json.dumps(told), event=kind, id=id)
