"""GET /openapi.json and GET /docs: the API's description, which loads nothing from other servers."""

from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Scope

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
    return JSONResponse(_document(*_inputs(http)))


@router.api_route(
    "/docs",
    methods=READ,
    **describe("Return this description as a page.", {"type": "string"}, content_type="text/html"),
)
async def docs(http: HttpRequest) -> Response:
    """Reply with the description as a page."""
    return HTMLResponse(_page(*_inputs(http), _base_url(http.scope)), headers=PAGE_HEADERS)


def _inputs(http: HttpRequest) -> tuple[FastAPI, Facts, str, str]:
    state = state_of(http)
    return http.app, _facts(state), state.version, http.scope.get("root_path", "")


def _base_url(scope: Scope) -> str:
    """Return the URL of the address that a request came to, for the page's examples. No text of the client is in it."""
    host, port = scope.get("server") or ("", None)
    root_path: str = scope.get("root_path", "")
    if port is None:  # a Unix socket, or a proxy before it
        return f"{scope['scheme']}://localhost{root_path}"
    name = f"[{host}]" if ":" in host else host
    return f"{scope['scheme']}://{name}:{port}{root_path}"


@lru_cache(maxsize=2)
def _document(app: FastAPI, facts: Facts, version: str, root_path: str) -> dict[str, Any]:
    """Return the description, made once while the model loads and once when it is ready.

    Making it takes about 50 ms: too long for the event loop at each request.
    """
    return document(app.state.routes, facts, version, root_path)


@lru_cache(maxsize=4)
def _page(app: FastAPI, facts: Facts, version: str, root_path: str, base_url: str) -> str:
    return page(_document(app, facts, version, root_path), base_url)


def _facts(state: ServerState) -> Facts:
    ready = state.engine.ready
    if ready is None:
        return Facts(state.all_names)
    return Facts(state.all_names, ready.vocab_size, ready.max_model_len, ready.num_experts, ready.dim)
