"""Errors as the API of a path writes them: OpenAI's shape, or Anthropic's at its endpoints."""

from collections.abc import Mapping

from starlette.types import Scope

from server.errors import ApiError

ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def is_anthropic(scope: Scope) -> bool:
    """Whether the request is to one of Anthropic's endpoints, behind a proxy's prefix or not."""
    path: str = scope.get("path", "")
    path = path.removeprefix(scope.get("root_path", ""))
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def error_body(error: ApiError, scope: Scope) -> Mapping[str, object]:
    """The body of the reply that tells the error."""
    return anthropic_error(error) if is_anthropic(scope) else error.body()


def anthropic_error(error: ApiError) -> dict[str, object]:
    """{"type": "error", "error": {"type", "message"}}; also the last event of a stream that fails."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
