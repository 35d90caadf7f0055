"""GET / and the playground's files: a page that uses this server only, shipped with the package."""

from hashlib import sha256

from fastapi import APIRouter
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.openapi.operations import Schema, describe
from server.api.playground_files import INDEX, PREFIX, files
from server.api.routes import READ

# Nothing inline, nothing from other servers: model output cannot become a script, and no API key can leave the page.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

FILE_NAME: Schema = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"enum": sorted(files())},
}

router = APIRouter()


@router.api_route(
    "/",
    methods=READ,
    **describe("Return the playground.", {"type": "string"}, statuses=(304,), content_type="text/html"),
)
async def page(http: HttpRequest) -> Response:
    """Reply with the page."""
    return _reply(INDEX, http)


@router.api_route(
    PREFIX + "{name:path}",
    methods=READ,
    **describe(
        "Return a file of the playground.",
        {"type": "string"},
        statuses=(304, 404),
        content_type="*/*",
        parameters=(FILE_NAME,),
    ),
)
async def file(name: str, http: HttpRequest) -> Response:
    """Reply with one file."""
    if name not in files():
        raise RoutingError(404)
    return _reply(name, http)


def _reply(name: str, http: HttpRequest) -> Response:
    content, content_type = files()[name]
    tag = f'"{sha256(content).hexdigest()[:16]}"'
    headers = HEADERS | {"content-type": content_type, "etag": tag}
    if http.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)
