"""GET / and the files of the playground: a page that talks to this server alone, shipped with the package."""

from functools import cache
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException as RoutingError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from server.api.routes import READ

FOLDER = Path(__file__).parents[2] / "playground"
INDEX = "index.html"
PREFIX = "/playground/"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere: a model's output cannot become a script, and no key can leave.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

router = APIRouter()


@cache
def files() -> dict[str, tuple[bytes, str]]:
    """The folder's files by name: content and content type."""
    paths = [path for path in FOLDER.iterdir() if path.suffix in CONTENT_TYPES]
    return {path.name: (path.read_bytes(), CONTENT_TYPES[path.suffix]) for path in paths}


def open_paths() -> frozenset[str]:
    """What is served without an API key: the page and its files, which hold nothing secret."""
    return frozenset({"/", *(PREFIX + name for name in files())})


@router.api_route("/", methods=READ)
async def page(http: HttpRequest) -> Response:
    """The page."""
    return _reply(INDEX, http)


@router.api_route(PREFIX + "{name}", methods=READ)
async def file(name: str, http: HttpRequest) -> Response:
    """One of its files."""
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
