"""Health, version and load. The replies come from memory, in every state of the engine."""

from dataclasses import fields

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.openapi import response_schemas
from server.api.openapi.operations import Schema, describe, describe_health
from server.api.request_body import add_ignored_params
from server.api.routes import READ
from server.errors import ApiError
from server.generation.state import state_of
from server.observability.health import liveness, readiness
from server.observability.recent_load import WINDOW_S, LoadPoint
from server.schemas.validation import fit_for_header

INTERVALS = ("5", "1", "2")  # seconds per point of /load/recent; the first is the default
NUM_POINTS = WINDOW_S // 5
DISK_BOUND = "disk-bound: steps mostly wait for experts that are read (--expert-memory)"
INTERVAL: Schema = {
    "name": "interval",
    "in": "query",
    "schema": {"type": "integer", "enum": [*map(int, INTERVALS)], "default": int(INTERVALS[0])},
}

router = APIRouter()


@router.api_route("/ping", methods=READ, **describe_health("Same as /health.", response_schemas.HEALTH))
@router.api_route("/health/ready", methods=READ, **describe_health("Same as /health.", response_schemas.HEALTH))
@router.api_route(
    "/health", methods=READ, **describe_health("Report whether the engine takes new requests.", response_schemas.HEALTH)
)
async def ready(http: HttpRequest) -> Response:
    """Reply 200 if the engine takes new requests, else 503. Overload refuses single requests; see readiness()."""
    state = state_of(http)
    status, body = readiness(state.engine.status)
    return JSONResponse(body | {"note": DISK_BOUND} if state.metrics.recent.is_disk_bound else body, status)


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


@router.api_route(
    "/load/recent",
    methods=READ,
    **describe("Return rates and times of the last minutes.", response_schemas.RECENT_LOAD, parameters=(INTERVAL,)),
)
async def recent_load(http: HttpRequest) -> Response:
    """Reply with columns: a number per interval of whole seconds, the newest last, null where nothing was measured."""
    interval_s = _interval_s(http.query_params.get("interval"))
    points = state_of(http).metrics.recent.points(interval_s, NUM_POINTS)
    names = [column.name for column in fields(LoadPoint)]
    columns = {name: [_rounded(getattr(point, name)) for point in points] for name in names}
    ignored = add_ignored_params({}, fit_for_header(http.query_params.keys() - {"interval"}))
    return JSONResponse({"interval_s": interval_s, **columns}, headers=ignored)


def _interval_s(text: str | None) -> int:
    """Parse the query parameter. Raises ApiError 400."""
    if text is not None and text not in INTERVALS:
        message = f"'interval' must be {', '.join(sorted(INTERVALS)[:-1])} or {max(INTERVALS)} (seconds)."
        raise ApiError(message, param="interval", code="invalid_value")
    return int(text or INTERVALS[0])


def _rounded(value: float | None) -> float | None:
    return value if value is None else round(value, 3)
