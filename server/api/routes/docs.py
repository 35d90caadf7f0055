"""GET /openapi.json and GET /docs: the API's description, which loads nothing from other servers."""

from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response

from server.api.openapi import Facts, document, page
from server.api.openapi.operations import describe
from server.api.routes import READ
from server.generation.state import ServerState, state_of

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}

router = APIRouter()


@router.api_route("/openapi.json", methods=READ, **describe("Return this description as JSON.", {"type": "object"}))
async def openapi(http: HttpRequest) -> Response:
    """Reply with the description for programs."""
    return JSONResponse(_document_of(http))


@router.api_route(
    "/docs",
    methods=READ,
    **describe("Return this description as a page.", {"type": "string"}, content_type="text/html"),
)
async def docs(http: HttpRequest) -> Response:
    """Reply with the description as a page."""
    return HTMLResponse(page(_document_of(http)), headers=PAGE_HEADERS)


def _document_of(http: HttpRequest) -> dict[str, Any]:
    state = state_of(http)
    return _document(http.app, _facts(state), state.version, http.scope.get("root_path", ""))


@lru_cache(maxsize=2)
def _document(app: FastAPI, facts: Facts, version: str, root_path: str) -> dict[str, Any]:
    """Return the description, made once while the model loads and once when it is ready.

    Making it takes about 50 ms: too long for the event loop at each request.
    """
    return document(app.state.routes, facts, version, root_path)


def _facts(state: ServerState) -> Facts:
    ready = state.engine.ready
    if ready is None:
        return Facts(state.model_names)
    return Facts(state.model_names, ready.vocab_size, ready.max_model_len, ready.num_experts, ready.dim)
