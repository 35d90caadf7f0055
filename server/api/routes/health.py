"""Health, version and load. The replies come from memory, in every state of the engine."""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.openapi import response_schemas
from server.api.openapi.operations import describe, describe_health
from server.api.routes import READ
from server.generation.state import state_of
from server.observability.health import liveness, readiness

router = APIRouter()


@router.api_route("/ping", methods=READ, **describe_health("Same as /health.", response_schemas.HEALTH))
@router.api_route("/health/ready", methods=READ, **describe_health("Same as /health.", response_schemas.HEALTH))
@router.api_route(
    "/health", methods=READ, **describe_health("Report whether new requests are accepted.", response_schemas.HEALTH)
)
async def ready(http: HttpRequest) -> Response:
    """Reply 200 if new requests are accepted, else 503."""
    status, body = readiness(state_of(http).engine.status)
    return JSONResponse(body, status)


@router.api_route(
    "/health/live",
    methods=READ,
    **describe_health("Report whether the process can make progress.", response_schemas.HEALTH),
)
async def live(http: HttpRequest) -> Response:
    """Reply 200 if the process can make progress, else 503."""
    status, body = liveness(state_of(http).engine.status)
    return JSONResponse(body, status)


@router.api_route("/version", methods=READ, **describe("Return the server's version.", response_schemas.VERSION))
async def version(http: HttpRequest) -> Response:
    """Reply with the server's version."""
    return JSONResponse({"version": state_of(http).version})


@router.api_route(
    "/load", methods=READ, **describe("Count the running and the waiting choices.", response_schemas.LOAD)
)
async def load(http: HttpRequest) -> Response:
    """Reply with the number of choices that run and that wait."""
    engine = state_of(http).engine
    num_running, num_waiting = engine.stats.num_running, engine.num_waiting
    return JSONResponse({"server_load": num_running + num_waiting, "running": num_running, "waiting": num_waiting})
