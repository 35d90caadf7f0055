"""Every operation: what it takes, what it gives, and the statuses that it may answer with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.api import playground_files
from server.api.openapi import response_schemas
from server.observability.expert_load import MIN_WINDOW_S, WINDOW_S
from server.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    CountTokensRequest,
    DetokenizeRequest,
    MessagesRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from server.schemas.validation import RequestModel

Schema = Mapping[str, Any]

STATUSES: Mapping[int, str] = {
    200: "As asked.",
    304: "The client's copy is still the newest.",
    400: "Not a valid request; `param` names the field.",
    401: "No valid API key.",
    404: "Unknown model or URL.",
    405: "Another method; `Allow` says which.",
    408: "The request did not arrive in time.",
    413: "The body is too long.",
    415: "Not JSON, or encoded.",
    429: "The queue is full; `Retry-After` estimates until when.",
    431: "The headers are too long.",
    500: "The server failed on this request.",
    503: "Loading, draining, no engine, or `queue_timeout_s` has passed; `Retry-After` says when to try again.",
    504: "`timeout_s` has passed.",
}
ANYWHERE = (400, 401, 405, 408, 413, 431, 500)  # what every operation may answer besides its own
WITH_BODY = (404, 415, 503)
GENERATION = (*WITH_BODY, 429, 504)


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    reply: Schema = field(default_factory=dict)
    request: type[RequestModel] | None = None
    statuses: tuple[int, ...] = ()
    content_type: str = "application/json"
    is_streamed: bool = False  # may also answer with events
    parameters: tuple[Schema, ...] = ()


MODEL_ID: Schema = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
FILE_NAME: Schema = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"enum": sorted(playground_files.files())},
}

WINDOW: Schema = {
    "name": "window",
    "in": "query",
    "schema": {"type": "number", "minimum": MIN_WINDOW_S, "maximum": WINDOW_S},
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "post",
        "/v1/completions",
        "Continues or scores prompts.",
        response_schemas.COMPLETION,
        CompletionRequest,
        GENERATION,
        is_streamed=True,
    ),
    Operation(
        "post",
        "/v1/chat/completions",
        "Answers a conversation.",
        response_schemas.CHAT,
        ChatCompletionRequest,
        GENERATION,
        is_streamed=True,
    ),
    Operation(
        "post",
        "/v1/responses",
        "OpenAI's Responses, as a translation of chat.",
        response_schemas.RESPONSE,
        ResponsesRequest,
        GENERATION,
        is_streamed=True,
    ),
    Operation(
        "post",
        "/v1/messages",
        "Anthropic's Messages, as a translation of chat.",
        response_schemas.MESSAGE,
        MessagesRequest,
        GENERATION,
        is_streamed=True,
    ),
    Operation(
        "post",
        "/v1/messages/count_tokens",
        "Counts the tokens of such a message's prompt.",
        response_schemas.TOKEN_COUNT,
        CountTokensRequest,
        WITH_BODY,
    ),
    Operation("get", "/v1/models", "What is served here.", response_schemas.MODELS),
    Operation(
        "get",
        "/v1/models/{model_id}",
        "One entry of it.",
        response_schemas.MODEL,
        statuses=(404,),
        parameters=(MODEL_ID,),
    ),
    Operation(
        "post",
        "/tokenize",
        "A text's or a conversation's token ids.",
        response_schemas.TOKENS,
        TokenizeRequest,
        WITH_BODY,
    ),
    Operation("post", "/detokenize", "The text of token ids.", response_schemas.PROMPT, DetokenizeRequest, WITH_BODY),
    Operation(
        "get",
        "/tokenizer_info",
        "The tokenizer's special tokens and the chat template in use.",
        response_schemas.TOKENIZER_INFO,
        statuses=(503,),
    ),
    Operation(
        "get",
        "/experts",
        "Which experts took which tokens.",
        response_schemas.EXPERTS,
        statuses=(503,),
        parameters=(WINDOW,),
    ),
    Operation(
        "post",
        "/experts/reset",
        "The same, and counted from zero from now on.",
        response_schemas.EXPERTS,
        statuses=(503,),
    ),
    Operation("get", "/health", "Whether new requests are taken.", response_schemas.HEALTH, statuses=(503,)),
    Operation("get", "/health/ready", "The same.", response_schemas.HEALTH, statuses=(503,)),
    Operation("get", "/ping", "The same.", response_schemas.HEALTH, statuses=(503,)),
    Operation(
        "get", "/health/live", "Whether the process can make progress.", response_schemas.HEALTH, statuses=(503,)
    ),
    Operation("get", "/version", "The server's version.", response_schemas.VERSION),
    Operation("get", "/load", "How many choices run and wait.", response_schemas.LOAD),
    Operation("get", "/metrics", "What Prometheus scrapes.", {"type": "string"}, content_type="text/plain"),
    Operation("get", "/openapi.json", "This description.", {"type": "object"}),
    Operation("get", "/docs", "This description, to read.", {"type": "string"}, content_type="text/html"),
    Operation("get", "/", "The playground.", {"type": "string"}, statuses=(304,), content_type="text/html"),
    Operation(
        "get",
        "/playground/{name}",
        "A file of the playground.",
        {"type": "string"},
        statuses=(304, 404),
        content_type="*/*",
        parameters=(FILE_NAME,),
    ),
)
