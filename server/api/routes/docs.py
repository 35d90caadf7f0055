"""GET /openapi.json and GET /docs: the API's description. Made from memory, with nothing from elsewhere."""

from functools import lru_cache
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response

from server.api.openapi import Facts, document, page
from server.api.routes import READ
from server.generation.state import ServerState, state_of

PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}

router = APIRouter()


@router.api_route("/openapi.json", methods=READ)
async def openapi(http: HttpRequest) -> Response:
    """For programs."""
    state = state_of(http)
    return JSONResponse(_document(_facts(state), state.version))


@router.api_route("/docs", methods=READ)
async def docs(http: HttpRequest) -> Response:
    """To read."""
    state = state_of(http)
    return HTMLResponse(page(_document(_facts(state), state.version)), headers=PAGE_HEADERS)


@lru_cache(maxsize=2)
def _document(facts: Facts, version: str) -> dict[str, Any]:
    """Made once while loading and once when ready: some 50 ms, which the event loop cannot spare at each request."""
    return document(facts, version)


def _facts(state: ServerState) -> Facts:
    ready = state.engine.ready
    if ready is None:
        return Facts(state.model_names)
    return Facts(state.model_names, ready.vocab_size, ready.max_model_len, ready.num_experts)
