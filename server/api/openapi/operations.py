"""Describe routes: FastAPI's arguments for each route, from which its entry in the OpenAPI document is made."""

from collections.abc import Mapping
from typing import Any

from server.schemas.validation import RequestModel

Schema = Mapping[str, Any]

EVENTS, NDJSON = "text/event-stream", "application/x-ndjson"  # content types of streams
COMPONENTS = "#/components/schemas/"
STATUSES: Mapping[int, str] = {
    200: "Success.",
    304: "The client's copy is current.",
    400: "The request is not valid; `param` names the field.",
    401: "No valid API key.",
    403: "The Host, or the origin of the web page that sent this, is not accepted.",
    404: "Unknown model or URL.",
    405: "The URL does not support this method; `Allow` lists those that it supports.",
    408: "The request did not arrive in time.",
    413: "The body is too long.",
    415: "The body is not JSON, or is compressed.",
    429: "The queue is full; `Retry-After` estimates the seconds until it has room.",
    431: "The headers are too long, or too many.",
    500: "The server failed on this request.",
    503: "Loading, draining, no engine, `queue_timeout_s` has passed, or the files are locked; see `Retry-After`.",
    504: "`timeout_s` has passed.",
    505: "The request is of another HTTP version than 1.0 and 1.1.",
    507: "The disk is full.",
}
ANYWHERE = (400, 401, 403, 405, 408, 413, 431, 500, 505)  # possible at every route
WITH_BODY = (404, 415, 503)
GENERATION = (*WITH_BODY, 429, 504)


def describe(
    summary: str,
    reply: Schema,
    *,
    request: type[RequestModel] | None = None,
    statuses: tuple[int, ...] = (),
    content_type: str = "application/json",
    is_streamed: bool = False,
    streams: str = EVENTS,
    parameters: tuple[Schema, ...] = (),
    error: str = "Error",
) -> dict[str, Any]:
    """Return the arguments `summary`, `responses` and `openapi_extra` for a route's decorator.

    `reply`: schema of the body with status 200. `statuses`: possible ones besides 200 and ANYWHERE. `is_streamed`: the
    route may also reply with a stream, of the content type `streams`. `error`: the component that describes error
    bodies.
    """
    content: dict[str, Mapping[str, Any]] = {content_type: {"schema": reply}}
    if is_streamed:
        content[streams] = {"schema": {}}
    responses: dict[int, dict[str, Any]] = {200: {"description": STATUSES[200], "content": content}}
    error_content = {"application/json": {"schema": {"$ref": COMPONENTS + error}}}
    for status in sorted({*ANYWHERE, *statuses}):
        responses[status] = {"description": STATUSES[status]} | ({} if status == 304 else {"content": error_content})
    extra: dict[str, Any] = {"parameters": list(parameters)} if parameters else {}
    if request is not None:
        schema = {"$ref": COMPONENTS + request.__name__}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"summary": summary, "responses": responses, "openapi_extra": extra}


def describe_health(summary: str, reply: Schema) -> dict[str, Any]:
    """Return the same for a health route, whose replies have one schema whether the status is 200 or 503."""
    described = describe(summary, reply, statuses=(503,))
    described["responses"][503]["content"] = described["responses"][200]["content"]
    return described
