"""Health, version and load: answered from memory, whatever the engine is doing."""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.routes import READ
from server.generation.state import state_of
from server.observability.health import liveness, readiness

router = APIRouter()


@router.api_route("/health", methods=READ)
@router.api_route("/health/ready", methods=READ)
@router.api_route("/ping", methods=READ)
async def ready(http: HttpRequest) -> Response:
    """Whether new requests are taken."""
    status, body = readiness(state_of(http).engine.status)
    return JSONResponse(body, status)


@router.api_route("/health/live", methods=READ)
async def live(http: HttpRequest) -> Response:
    """Whether the process can make progress."""
    status, body = liveness(state_of(http).engine.status)
    return JSONResponse(body, status)


@router.api_route("/version", methods=READ)
async def version(http: HttpRequest) -> Response:
    """The server's version."""
    return JSONResponse({"version": state_of(http).version})


@router.api_route("/load", methods=READ)
async def load(http: HttpRequest) -> Response:
    """How many choices the engine works on, and how many wait for it."""
    engine = state_of(http).engine
    num_running, num_waiting = engine.stats.num_running, engine.num_waiting
    return JSONResponse({"server_load": num_running + num_waiting, "running": num_running, "waiting": num_waiting})
