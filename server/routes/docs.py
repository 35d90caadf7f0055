"""GET /openapi.json and GET /docs: the API's description. Made from memory, with nothing from elsewhere."""

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response

from server.openapi import Facts, document, page
from server.state import AppState, state_of

PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}

router = APIRouter()


@router.get("/openapi.json")
async def openapi(http: HttpRequest) -> Response:
    """For programs."""
    state = state_of(http)
    return JSONResponse(document(_facts(state), state.version))


@router.get("/docs")
async def docs(http: HttpRequest) -> Response:
    """To read."""
    state = state_of(http)
    return HTMLResponse(page(document(_facts(state), state.version)), headers=PAGE_HEADERS)


def _facts(state: AppState) -> Facts:
    ready = state.engine.ready
    if ready is None:
        return Facts(state.model_names)
    return Facts(state.model_names, ready.vocab_size, ready.max_model_len, ready.num_experts)
