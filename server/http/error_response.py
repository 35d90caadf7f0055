"""Send an API error as a complete ASGI response."""

import orjson
from starlette.types import Scope, Send

from server.errors import ApiError, error_body


async def send_error(scope: Scope, send: Send, error: ApiError) -> None:
    """Send the error as a complete response, for callers outside the app."""
    body = orjson.dumps(error_body(error, scope))
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw_headers})
    await send({"type": "http.response.body", "body": body})
