"""The addresses of pictures, jobs and models."""

import asyncio
import re
import time
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Request
from starlette.responses import JSONResponse, Response

from cascade.serve.desk import Desk, unknown
from cascade.serve.events import Stream, answer, as_job, as_openai, told
from cascade.serve.images import ImageRequest
from cascade.serve.jobs import Job
from cascade.serve.keys import Client
from cascade.serve.problems import ErrorAnswer, Problem

_KEY: Final = re.compile(r"[!-~]{1,255}")
_GONE: Final = 499  # a client that has left reads no status; the log does
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorAnswer, "description": what}
    for status, what in {
        400: "The request is wrong.",
        401: "The key is missing or wrong.",
        403: "The host, the page or the key may not.",
        404: "There is no such thing.",
        409: "It was cancelled.",
        413: "The body is too large.",
        422: "An Idempotency-Key with another body, or settings that draw no picture.",
        429: "Too many requests or pictures; see Retry-After.",
        500: "The server failed.",
        503: "The queue is full, or the server stops; see Retry-After.",
        504: "It was not done in time.",
    }.items()
}
_PICTURES: Final[dict[str, Any]] = {
    "description": "The pictures, or events where stream is true.",
    "content": {"application/json": {}, "text/event-stream": {}},
}

router = APIRouter(prefix="/v1", responses=_ERRORS)


def desk_of(request: Request) -> Desk:
    """Return the server's desk."""
    desk: Desk = request.app.state.desk
    return desk


def client_of(request: Request) -> Client:
    """Return who asks."""
    address = request.client.host if request.client else ""
    header = request.headers.get("authorization")
    return desk_of(request).keys.identify(header, address)


def key_of(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
    """Return a client's name for a request that it may send again."""
    if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
        message = "Idempotency-Key must be 1 to 255 visible ASCII characters."
        raise Problem(400, message, "invalid_header", "Idempotency-Key")
    return idempotency_key


AtDesk = Annotated[Desk, Depends(desk_of)]
Asking = Annotated[Client, Depends(client_of)]
Key = Annotated[str | None, Depends(key_of)]
Id = Annotated[str, Path(max_length=200)]


@router.post("/images/generations", responses={200: _PICTURES})
async def generate(
    asked: ImageRequest, request: Request, desk: AtDesk, client: Asking, key: Key
) -> Response:
    """Draw pictures of a prompt."""
    job = await desk.take(client, asked, request.state.id, key, as_job=False)
    if asked.stream:
        return _stream(desk, as_openai(job), job)
    try:
        return await _whole(request, job)
    finally:
        desk.leave(job)


@router.api_route("/images/{edit}", methods=["POST"], include_in_schema=False)
async def edit(edit: str, client: Asking) -> Response:
    """Refuse to change pictures."""
    message = "These models draw pictures and change none; POST to /v1/images/generations."
    raise Problem(404, message, "not_supported")


@router.get("/models")
async def models(desk: AtDesk, client: Asking) -> dict[str, Any]:
    """List the models that a key sees."""
    return {"object": "list", "data": [_card(name) for name in await desk.names(client)]}


@router.get("/models/{model}")
async def model(model: Id, desk: AtDesk, client: Asking) -> dict[str, Any]:
    """Tell of one model, and the sizes it makes."""
    if model not in await desk.names(client):
        raise unknown(model)
    return _card(model)


@router.post("/jobs/images", status_code=202)
async def make(
    asked: ImageRequest,
    request: Request,
    response: Response,
    desk: AtDesk,
    client: Asking,
    key: Key,
) -> dict[str, Any]:
    """Draw pictures of a prompt for whoever asks for them later."""
    job = await desk.take(client, asked, request.state.id, key, as_job=True)
    response.headers["location"] = f"/v1/jobs/{job.id}"
    return told(job)


@router.get("/jobs/{id}")
async def find(id: Id, desk: AtDesk, client: Asking) -> Response:
    """Tell how a job stands; a completed one's `result` is what a generation answers."""
    job = desk.jobs.find(client.name, id)
    if job.status != "completed":
        return JSONResponse(told(job) | {"result": None})
    head = await asyncio.to_thread(answer, job)
    start = (await asyncio.to_thread(JSONResponse, told(job))).body[:-1]
    return Response(bytes(start) + b',"result":' + head + b"}", media_type="application/json")


@router.get(
    "/jobs/{id}/events",
    responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "All is told."}},
)
async def follow(
    id: Id,
    desk: AtDesk,
    client: Asking,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Tell what comes of a job; with Last-Event-ID, what came behind that event."""
    job = desk.jobs.find(client.name, id)
    digits = last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit()
    after = int(last_event_id[:18]) if last_event_id is not None and digits else 0
    if job.ended is not None and after >= job.log[-1].number:
        return Response(status_code=204)  # an EventSource asks again until it is told this
    return _stream(desk, as_job(job, after), None)


@router.post("/jobs/{id}/cancel")
async def cancel(id: Id, desk: AtDesk, client: Asking) -> dict[str, Any]:
    """End a job before its next step; one that has ended stays as it is."""
    job = desk.jobs.find(client.name, id)
    desk.cancel(job)
    return told(job)


@router.delete("/jobs/{id}", status_code=204)
async def forget(id: Id, desk: AtDesk, client: Asking) -> None:
    """End a job and forget its pictures; again does nothing more."""
    job = desk.jobs.remove(client.name, id)
    if job is not None:
        desk.cancel(job)


def _stream(desk: Desk, events: Any, job: Job | None) -> Stream:
    """Return a stream of events; without a job of its own, nothing ends with it."""
    desk.metrics.follow(True)

    def left() -> None:
        desk.metrics.follow(False)
        if job is not None:
            desk.leave(job)

    return Stream(events, left, desk.config.drain)


async def _whole(request: Request, job: Job) -> Response:
    """Wait for the pictures, or until the client leaves."""
    done, gone = asyncio.create_task(job.wait()), asyncio.create_task(_left(request))
    try:
        await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        done.cancel()
        gone.cancel()
    if job.problem is not None:
        raise job.problem
    if job.ended is None:
        return Response(status_code=_GONE)
    body = await asyncio.to_thread(answer, job)
    return Response(body, media_type="application/json")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "dreamcascade"}


_STARTED: Final = int(time.time())
