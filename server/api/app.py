"""The ASGI application: routes and exception handlers. server/http/middleware.py wraps it."""

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.routes import (
    adapters,
    batches,
    chat,
    completions,
    docs,
    embeddings,
    experts,
    files,
    health,
    messages,
    metrics,
    models,
    ollama,
    playground,
    responses,
    score,
    tokenize,
)
from server.api.url_hints import url_hint
from server.errors import ApiError, error_body, internal_error, method_not_allowed, unknown_url
from server.generation.state import ServerState
from server.http.disconnect import ClientDisconnected

MODULES = (
    completions,
    chat,
    responses,
    messages,
    ollama,
    embeddings,
    score,
    models,
    tokenize,
    files,
    batches,
    adapters,
    experts,
    health,
    metrics,
    docs,
    playground,
)
ROUTERS = [module.router for module in MODULES]
ROUTES = [route for router in ROUTERS for route in router.routes]
PATHS = sorted({route.path for route in ROUTES if isinstance(route, APIRoute) and "{" not in route.path})
CLIENT_CLOSED_REQUEST = 499  # nginx's status, for the metrics only: the client has left


def create_app(state: ServerState) -> FastAPI:
    """Create the app of a server. Serve it behind server.http.middleware.with_middleware, which sets request ids."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.smoe = state
    app.state.batches = None  # server.api.batch_access.BatchAccess with --batch-dir
    app.state.routes = ROUTES
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RoutingError, _on_routing_error)
    app.add_exception_handler(ClientDisconnected, _on_disconnect)
    app.add_exception_handler(Exception, _on_fault)
    return app


def error_response(http: HttpRequest, error: ApiError) -> Response:
    """Return the reply for an error."""
    return JSONResponse(error_body(error, http.scope), error.status, error.headers)


async def _on_api_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(http, error)


async def _on_routing_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RoutingError)
    if error.status_code == 405:
        return error_response(http, method_not_allowed(sorted((error.headers or {})["Allow"].split(", "))))
    hint = url_hint(http.scope["path"].removeprefix(http.scope.get("root_path", "")), PATHS)
    return error_response(http, unknown_url() if hint is None else unknown_url(hint))


async def _on_disconnect(_: HttpRequest, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_fault(http: HttpRequest, error: Exception) -> Response:
    """Reply to an unexpected exception without details. Its traceback goes to the server's log."""
    return error_response(http, internal_error())
