"""The ASGI application: routes and exception handlers. server/http/middleware.py wraps it."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from server.api.routes import (
    chat,
    completions,
    docs,
    experts,
    health,
    messages,
    metrics,
    models,
    playground,
    responses,
    tokenize,
)
from server.errors import ApiError, error_body, internal_error, method_not_allowed, unknown_url
from server.generation.state import ServerState
from server.http.disconnect import ClientDisconnected

CLIENT_CLOSED_REQUEST = 499  # nobody reads it; nginx's number, for the counts


def create_app(state: ServerState) -> FastAPI:
    """The app around `state`. Serve it behind server.limits.guarded, which gives each request its id."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.smoe = state
    for module in (
        completions,
        chat,
        responses,
        messages,
        models,
        tokenize,
        experts,
        health,
        metrics,
        docs,
        playground,
    ):
        app.include_router(module.router)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RoutingError, _on_routing_error)
    app.add_exception_handler(ClientDisconnected, _on_client_gone)
    app.add_exception_handler(Exception, _on_fault)
    return app


def error_response(http: HttpRequest, error: ApiError) -> Response:
    """The error as a whole reply."""
    return JSONResponse(error_body(error, http.scope), error.status, error.headers)


async def _on_api_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(http, error)


async def _on_routing_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RoutingError)
    if error.status_code == 405:
        return error_response(http, method_not_allowed(sorted((error.headers or {})["Allow"].split(", "))))
    return error_response(http, unknown_url())


async def _on_client_gone(_: HttpRequest, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _on_fault(http: HttpRequest, error: Exception) -> Response:
    """The last resort. The server's log gets the traceback, the client no details."""
    return error_response(http, internal_error())
