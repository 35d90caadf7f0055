"""GET /metrics: the metrics that Prometheus scrapes."""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.openapi.operations import describe
from server.api.routes import READ
from server.generation.state import state_of
from server.observability.exposition import CONTENT_TYPE

router = APIRouter()


@router.api_route(
    "/metrics",
    methods=READ,
    **describe("Return the metrics for Prometheus.", {"type": "string"}, content_type="text/plain"),
)
async def metrics(http: HttpRequest) -> Response:
    """Reply with all metrics in Prometheus' text format."""
    return Response(state_of(http).metrics.exposition.render(), headers={"content-type": CONTENT_TYPE})
