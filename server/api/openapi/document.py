"""The OpenAPI document of one running server."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from server.api.openapi.bounds import Facts, bounded
from server.api.openapi.descriptions import (
    describe_parameter,
    describe_reply,
    describe_request,
    plain_name,
    with_plain_names,
)
from server.api.openapi.examples import example_body, example_value
from server.api.openapi.groups import GROUPS, group_of
from server.api.openapi.operations import COMPONENTS
from server.api.openapi.response_schemas import ANTHROPIC_ERROR, ERROR, OLLAMA_ERROR
from server.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    CountTokensRequest,
    CreateBatchRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    LoadAdapterRequest,
    MessagesRequest,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
    RerankRequest,
    ResponsesRequest,
    ScoreRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
)
from server.schemas.validation import RequestModel

REQUEST_MODELS: tuple[type[RequestModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    CountTokensRequest,
    CreateBatchRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    LoadAdapterRequest,
    MessagesRequest,
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
    RerankRequest,
    ResponsesRequest,
    ScoreRequest,
    TokenizeRequest,
    UnloadAdapterRequest,
)
RULES = (
    "Rules besides the bounds of the fields: `max_tokens` and the prompt together fit into `max_model_len`; "
    "`min_tokens` is at most `max_tokens`; `stream_options` requires `stream`, `top_logprobs` requires `logprobs`; "
    "`best_of` equals `n`; `max_tokens` may be 0 only with `echo`; `truncate_prompt_tokens` is not 0; `text_1` is one "
    "text, or as many as `text_2`. Unknown fields are ignored, and named in the header `x-smoe-ignored-params`."
)


def document(routes: Iterable[BaseRoute], facts: Facts, version: str, root_path: str = "") -> dict[str, Any]:
    """Return the description of the routes, with the bounds of this server's model (`facts`).

    `root_path`: the prefix that a reverse proxy adds to all paths.

    FastAPI's own generator would add HEAD, its 422, and the docstrings, which are not for users.
    """
    _, schemas = models_json_schema(
        [(model, "validation") for model in REQUEST_MODELS], ref_template=COMPONENTS + "{model}"
    )
    components = {
        plain_name(name): describe_request(plain_name(name), bounded(with_plain_names(schema), facts))
        for name, schema in schemas["$defs"].items()
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        assert isinstance(route, APIRoute)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(route.path_format, {})[method.lower()] = _operation(route, method.lower(), facts)
    return {
        "openapi": "3.1.0",
        "info": {"title": "smoe", "version": version, "description": RULES},
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "tags": [{"name": group.name, "description": group.description} for group in GROUPS],
        "paths": paths,
        "components": {
            "schemas": {
                **components,
                "Error": describe_reply(ERROR),
                "AnthropicError": describe_reply(ANTHROPIC_ERROR),
                "OllamaError": describe_reply(OLLAMA_ERROR),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: APIRoute, method: str, facts: Facts) -> dict[str, Any]:
    path = route.path_format
    name = path.strip("/").replace("/", "_").replace("{", "").replace("}", "") or "playground"
    operation: dict[str, Any] = {
        "operationId": f"{method}_{name}",
        "summary": route.summary,
        "tags": [group_of(path).name],
        "responses": {str(status): describe_reply(response) for status, response in route.responses.items()},
        "security": [{}, {"key": []}],
        **(route.openapi_extra or {}),
    }
    model = next(iter(facts.model_names), "MODEL")
    if "parameters" in operation:
        operation["parameters"] = [
            describe_parameter(bounded(parameter, facts), example_value(parameter["name"], model))
            for parameter in operation["parameters"]
        ]
    if "requestBody" in operation:
        contents = operation["requestBody"]["content"]
        contents = {kind: _content(content, path, model) for kind, content in contents.items()}
        operation["requestBody"] = {**operation["requestBody"], "content": contents}
    return operation


def _content(content: Mapping[str, Any], path: str, model: str) -> dict[str, Any]:
    """Return a body's content with an example, and with sentences for the fields of an object without a name."""
    example = example_body(path, model)
    described = {**content, "schema": describe_request("UploadForm", content["schema"])}
    return described if example is None else {**described, "example": example}
