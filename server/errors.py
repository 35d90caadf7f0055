"""All errors of the API as one exception, and their bodies in OpenAI's, Anthropic's and Ollama's shapes.

Messages never contain parts of the client's request.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from starlette.types import Scope

ErrorType = Literal[
    "invalid_request_error", "rate_limit_error", "server_error", "service_unavailable_error", "timeout_error"
]

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
_CODE = f" ({CONTEXT_LENGTH_EXCEEDED})"  # LangChain looks for it in the message, which lacks the code's own field
CHECK_RETRY_S = 1.0
MAX_RETRY_AFTER_S = 120  # openai-python ignores longer times
MAX_NAMED_MODELS = 5

ANTHROPIC_PATH = "/v1/messages"
OLLAMA_PATH = "/api"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}

UPLOAD_RETRY_S = 5.0
BATCH_RETRY_S = 60.0  # batches take minutes


class ApiError(Exception):
    """One HTTP error: its status, its headers, and the four fields of `{"error": ...}`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: ErrorType = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        anthropic_message: str | None = None,
    ) -> None:
        """`anthropic_message`: the message in Anthropic's wording, for errors that its clients know by their words."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers)
        self.anthropic_message = anthropic_message

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the JSON of the error: the body of a reply, or the last event of a stream."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def invalid_json(message: str) -> ApiError:
    return ApiError(message, code="invalid_json")


def invalid_type(message: str, param: str | None = None) -> ApiError:
    return ApiError(message, param=param, code="invalid_type")


def invalid_value(message: str, param: str | None) -> ApiError:
    return ApiError(message, param=param, code="invalid_value")


def unsupported_parameter(param: str, message: str | None = None) -> ApiError:
    return ApiError(message or f"'{param}' is not supported.", param=param, code="unsupported_parameter")


def unknown_parameter(param: str | None) -> ApiError:
    """`param`: the field's name, or None for a name with unprintable characters."""
    return ApiError("The request has a field that this endpoint does not know.", param=param, code="unknown_parameter")


def unknown_member(param: str | None, *, is_named: bool = True) -> ApiError:
    """A field inside a format is unknown. `param`: the field, or unless `is_named`, for a name with unprintable
    characters, what has it."""
    what = f"'{param}' {'is unknown' if is_named else 'has an unknown field'}."
    message = f"{what} Inside a format nothing unknown is ignored, because it could be a constraint."
    return ApiError(message, param=param, code="unknown_parameter")


def context_length_exceeded(num_prompt: int, num_completion: int, limit: int, param: str) -> ApiError:
    """`limit`: how many tokens fit into the model and its KV cache, prompt and completion together. `param`: the field
    to change; if the prompt leaves room for a completion, the one that limits the completion.

    Frameworks recognise a full context by OpenAI's and Anthropic's words, so the messages begin with them.
    """
    tokens = f"{num_prompt + num_completion} tokens ({num_prompt} in the prompt, {num_completion} in the completion)"
    message = (
        f"{_maximum_context(limit)} However, you requested {tokens}. {_shorten(limit - num_prompt, param)}{_CODE}."
    )
    anthropic_message = (
        f"input length and `max_tokens` exceed context limit: {num_prompt} + {num_completion} > {limit}, "
        "decrease input length or `max_tokens` and try again"
    )
    return ApiError(message, param=param, code=CONTEXT_LENGTH_EXCEEDED, anthropic_message=anthropic_message)


def _shorten(room: int, param: str) -> str:
    """Return the way out: `room` tokens are left for the completion."""
    return "Shorten the prompt" if room < 1 else f"Set '{param}' to at most {room}, or shorten the prompt"


def prompt_too_long(num_prompt: int, longest: int, context: int, param: str) -> ApiError:
    """The prompt alone is too long. `num_prompt` may be a lower bound.

    `longest`: most tokens of a prompt, one less than the `context` if a completion must follow.
    """
    shorten = f"Shorten it to at most {longest}{_CODE}."
    message = f"{_maximum_context(context)} However, your prompt has at least {num_prompt} tokens. {shorten}"
    anthropic_message = f"prompt is too long: {num_prompt} tokens > {longest} maximum"
    return ApiError(message, param=param, code=CONTEXT_LENGTH_EXCEEDED, anthropic_message=anthropic_message)


def _maximum_context(limit: int) -> str:
    return f"This model's maximum context length is {limit} tokens."


def invalid_api_key() -> ApiError:
    message = "Send a valid API key as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    return ApiError(message, status=401, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def host_not_allowed() -> ApiError:
    message = "The Host of this request is not accepted here; start the server with --allowed-hosts NAME to accept it."
    return ApiError(message, status=403, param="Host", code="host_not_allowed")


def origin_not_allowed() -> ApiError:
    message = (
        "A web page of another origin sent this request; start the server with --allowed-origins ORIGIN to accept it."
    )
    return ApiError(message, status=403, param="Origin", code="origin_not_allowed")


def model_not_found(served: Sequence[str] = (), *, was_unloaded: bool = False) -> ApiError:
    """`served`: the names of the model, of which the message has the first few. `was_unloaded`: the name was that of a
    LoRA adapter."""
    names = ", ".join(served[:MAX_NAMED_MODELS])
    instead = f"; send one of: {names}" if names else ""
    what = "This LoRA adapter was unloaded" if was_unloaded else "This model is not served here"
    message = f"{what}{instead}. GET /v1/models lists all names."
    return ApiError(message, status=404, param="model", code="model_not_found")


def adapter_not_found(served: Sequence[str], *, is_model: bool) -> ApiError:
    """`served`: the names of the adapters. `is_model`: the given name is one of the model itself."""
    what = "is the model itself, not a LoRA adapter" if is_model else "names no LoRA adapter that is served here"
    names = ", ".join(served[:MAX_NAMED_MODELS])
    there_are = f"send one of: {names}" if names else "there are none"
    return ApiError(f"'lora_name' {what}; {there_are}.", status=404, param="lora_name", code="model_not_found")


def no_embeddings() -> ApiError:
    """The model generates text, and the operator did not choose to embed with it."""
    message = (
        "This model was not trained for embeddings; start the server with --embeddings to use the hidden state of "
        "its last token."
    )
    return ApiError(message, param="model", code="embeddings_not_supported")


def no_generation() -> ApiError:
    """The model is an embedding model, without an output head."""
    message = "This model embeds texts and generates none; send them to /v1/embeddings."
    return ApiError(message, param="model", code="generation_not_supported")


def batches_disabled() -> ApiError:
    message = "This server has no files and batches; start it with --batch-dir DIR to have them."
    return ApiError(message, status=404, code="batches_disabled")


def lora_disabled() -> ApiError:
    message = "This server loads no LoRA adapters while it runs; start it with --enable-runtime-lora to allow it."
    return ApiError(message, status=404, code="lora_disabled")


def object_not_found(what: Literal["file", "batch"], param: str) -> ApiError:
    """The file or batch does not exist, or belongs to another API key."""
    return ApiError(f"There is no {what} with this id.", status=404, param=param, code=f"{what}_not_found")


def unknown_url(hint: str = "GET /docs lists the URLs.") -> ApiError:
    """`hint`: what to call instead, as a sentence."""
    return ApiError(f"There is nothing at this URL. {hint}", status=404, code="unknown_url")


def method_not_allowed(allowed: list[str]) -> ApiError:
    allow = ", ".join(allowed)
    message = f"This URL supports {allow} only."
    return ApiError(message, status=405, code="method_not_allowed", headers={"allow": allow})


def request_timeout() -> ApiError:
    message = "The request did not arrive in time."
    return ApiError(message, status=408, code="request_timeout", headers={"connection": "close"})


def request_too_large(limit_bytes: int) -> ApiError:
    message = f"The body may have at most {limit_bytes} bytes."
    return ApiError(message, status=413, code="request_too_large", headers={"connection": "close"})


def unsupported_content_type() -> ApiError:
    message = "Send JSON with 'Content-Type: application/json'."
    return ApiError(message, status=415, param="Content-Type", code="unsupported_content_type")


def unsupported_content_encoding() -> ApiError:
    message = "Send the body without Content-Encoding."
    return ApiError(message, status=415, param="Content-Encoding", code="unsupported_content_encoding")


def http_version_not_supported() -> ApiError:
    message = "This server speaks HTTP/1.1."
    return ApiError(message, status=505, code="http_version_not_supported", headers={"connection": "close"})


def malformed_request() -> ApiError:
    message = "These bytes are not an HTTP/1.1 request."
    return ApiError(message, code="malformed_request", headers={"connection": "close"})


def headers_too_large() -> ApiError:
    message = "The request's headers are too large, or too many."
    return ApiError(message, status=431, code="headers_too_large", headers={"connection": "close"})


def queue_full(retry_after_s: float) -> ApiError:
    """The queue, or a part of it, is full. `retry_after_s`: estimated time until it has room."""
    return ApiError(
        "The server is busy; try again after the time in Retry-After.",
        status=429,
        type="rate_limit_error",
        code="queue_full",
        headers=_retry_after(retry_after_s),
    )


def queue_timeout(retry_after_s: float) -> ApiError:
    """The client's limit on the time in the queue has passed. Nothing was computed."""
    return ApiError(
        "The request waited longer than its 'queue_timeout_s'.",
        status=503,
        type="service_unavailable_error",
        param="queue_timeout_s",
        code="queue_timeout",
        headers=_retry_after(retry_after_s),
    )


def deadline_exceeded() -> ApiError:
    """The client's limit on the whole request has passed. A retry would take as long: a header advises against it."""
    return ApiError(
        "The request was not finished within its 'timeout_s'.",
        status=504,
        type="timeout_error",
        param="timeout_s",
        code="deadline_exceeded",
        headers={"x-should-retry": "false"},
    )


def unavailable(reason: Literal["loading", "draining", "engine_dead"], retry_after_s: float) -> ApiError:
    """The server accepts no requests now, for one of three reasons."""
    message = {
        "loading": "The model is still loading.",
        "draining": "The server is shutting down and accepts no new requests.",
        "engine_dead": "The engine has stopped.",
    }[reason]
    headers = _retry_after(retry_after_s)
    return ApiError(message, status=503, type="service_unavailable_error", code=reason, headers=headers)


def cut_short(retry_after_s: float) -> ApiError:
    """The server ended while it worked on the request."""
    error = unavailable("draining", retry_after_s)
    error.message = "The server was stopped before this request was complete."
    return error


def check_not_possible(param: str) -> ApiError:
    """The process that checks this parameter was ended from outside. Says nothing about the parameter."""
    return ApiError(
        f"'{param}' could not be checked now; try again.",
        status=503,
        type="service_unavailable_error",
        code="overloaded",
        headers=_retry_after(CHECK_RETRY_S),
    )


def overloaded(retry_after_s: float, *, close: bool = False) -> ApiError:
    """Memory or connections are used up: running requests continue, new ones fail. `close`: close the connection."""
    return ApiError(
        "The server is overloaded; try again after the time in Retry-After.",
        status=503,
        type="service_unavailable_error",
        code="overloaded",
        headers={**_retry_after(retry_after_s), **({"connection": "close"} if close else {})},
    )


def request_memory_full(retry_after_s: float) -> ApiError:
    """Request bodies, with what is parsed from them, use up their memory."""
    return ApiError(
        "The memory for request bodies (--request-memory-bytes) is full; try again after the time in Retry-After.",
        status=503,
        type="service_unavailable_error",
        code="request_memory_full",
        headers={**_retry_after(retry_after_s), "connection": "close"},
    )


def reply_memory_full(retry_after_s: float) -> ApiError:
    """Replies with log probabilities or expert ids use up their memory."""
    return _budget_full("replies with log probabilities or expert ids", "reply_memory_full", retry_after_s)


def constraints_full(retry_after_s: float) -> ApiError:
    """Biases, allowed tokens and bad words of open requests use up their memory."""
    return _budget_full("biases, allowed tokens and bad words", "constraints_full", retry_after_s)


def text_queue_full(retry_after_s: float) -> ApiError:
    """Too many long texts and bodies wait to be parsed, rendered or tokenized."""
    message = "Too many long texts wait to be processed; try again after the time in Retry-After."
    return _rate_limit(message, "text_queue_full", retry_after_s)


def too_many_uploads(most: int) -> ApiError:
    """The key uploads as many files as it may at a time."""
    message = f"An API key may upload {most} files at a time; try again when one has arrived."
    return _rate_limit(message, "too_many_uploads", UPLOAD_RETRY_S)


def too_many_batches(most: int) -> ApiError:
    """The key has as many batches that have not ended as it may have."""
    message = f"An API key may have {most} batches that have not ended."
    return _rate_limit(message, "too_many_batches", BATCH_RETRY_S)


def _budget_full(what: str, code: str, retry_after_s: float) -> ApiError:
    message = f"The memory for {what} is full; try again after the time in Retry-After."
    return _rate_limit(message, code, retry_after_s)


def _rate_limit(message: str, code: str, retry_after_s: float) -> ApiError:
    headers = _retry_after(retry_after_s)
    return ApiError(message, status=429, type="rate_limit_error", code=code, headers=headers)


def internal_error(*, deterministic: bool = True) -> ApiError:
    """A fault of the server. `deterministic`: a retry would fail again, so the header advises against it."""
    headers = {"x-should-retry": "false"} if deterministic else NO_HEADERS
    message = "The server failed on this request."
    return ApiError(message, status=500, type="server_error", code="internal_error", headers=headers)


def _retry_after(retry_after_s: float) -> dict[str, str]:
    return {"retry-after": str(max(1, min(MAX_RETRY_AFTER_S, round(retry_after_s))))}


def is_anthropic(scope: Scope) -> bool:
    """Return whether the request is to one of Anthropic's endpoints, with or without a proxy's prefix."""
    return _is_below(ANTHROPIC_PATH, scope)


def _is_below(start: str, scope: Scope) -> bool:
    path: str = scope.get("path", "")
    path = path.removeprefix(scope.get("root_path", ""))
    return path == start or path.startswith(start + "/")


def error_body(error: ApiError, scope: Scope) -> Mapping[str, object]:
    """Return the body of the error's reply in the shape of the requested API."""
    if _is_below(OLLAMA_PATH, scope):
        return ollama_error(error)
    return anthropic_error(error) if is_anthropic(scope) else error.body()


def ollama_error(error: ApiError) -> dict[str, object]:
    """Return {"error": message}, which is also the last line of a failed stream."""
    return {"error": error.message}


def anthropic_error(error: ApiError) -> dict[str, object]:
    """Return {"type": "error", "error": {"type", "message"}}, which is also the last event of a failed stream."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.anthropic_message or error.message}}
