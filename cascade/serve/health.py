"""Whether the server lives, whether it takes requests, and its figures."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from cascade.serve.problems import ErrorAnswer, Problem
from cascade.serve.routes import Asking, AtDesk

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "Not yet, or no more."}})
async def ready(desk: AtDesk) -> Response:
    """Say whether requests are taken: models are warm, and the server is not being stopped."""
    if desk.draining:
        return JSONResponse({"status": "draining"}, 503)
    if not desk.ready:
        return JSONResponse({"status": desk.failure or "warming up"}, 503)
    return JSONResponse({"status": "ready"})


@router.get(
    "/metrics",
    responses={
        200: {"content": {"text/plain": {}}},
        401: {"model": ErrorAnswer},
        403: {"model": ErrorAnswer},
    },
)
async def metrics(desk: AtDesk, client: Asking) -> Response:
    """Return figures for Prometheus; where there are keys, to an admin's."""
    if desk.keys.needed and not client.admin:
        raise Problem(403, "Your key may not read the figures; it needs admin.", "not_admin")
    return Response(desk.metrics.text_format(), media_type=CONTENT_TYPE_LATEST)
