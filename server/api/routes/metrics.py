"""GET /metrics, which Prometheus scrapes, and GET /metrics/load, which routers scrape many times a second."""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.openapi.operations import describe
from server.api.routes import READ
from server.generation.state import state_of
from server.observability.exposition import CONTENT_TYPE
from server.observability.load import render_load

router = APIRouter()


@router.api_route(
    "/metrics",
    methods=READ,
    **describe("Return the metrics for Prometheus.", {"type": "string"}, content_type="text/plain"),
)
async def metrics(http: HttpRequest) -> Response:
    """Reply with all metrics in Prometheus' text format."""
    return Response(state_of(http).metrics.exposition.render(), headers={"content-type": CONTENT_TYPE})


@router.api_route(
    "/metrics/load",
    methods=READ,
    **describe(
        "Return the load at this moment for routers, under vLLM's names.", {"type": "string"}, content_type="text/plain"
    ),
)
async def metrics_load(http: HttpRequest) -> Response:
    """Reply with the waiting and running choices and the use of the KV cache, computed now and never cached."""
    return Response(render_load(state_of(http).metrics.load), headers={"content-type": CONTENT_TYPE})
