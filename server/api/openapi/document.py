"""The OpenAPI document of one running server."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from server.api.openapi.bounds import Facts, bounded
from server.api.openapi.operations import ANYWHERE, OPERATIONS, STATUSES, Operation
from server.api.openapi.response_schemas import ANTHROPIC_ERROR, ERROR
from server.errors import ANTHROPIC_PATH

__all__ = ["Facts", "document"]

COMPONENTS = "#/components/schemas/"
RULES = (
    "Besides the bounds of the fields: `max_tokens` and the prompt fit together into `max_model_len`; `min_tokens` is "
    "at most `max_tokens`; `stream_options` goes with `stream`, `top_logprobs` with `logprobs`; `best_of` equals `n`; "
    "`max_tokens` is 0 with `echo` only. Unknown fields are ignored, and named in `x-smoe-ignored-params`."
)


@dataclass(frozen=True)
class _Error:
    """A status that is no success."""

    status: int
    path: str

    @property
    def response(self) -> dict[str, Any]:
        name = "AnthropicError" if self.path.startswith(ANTHROPIC_PATH) else "Error"
        content = {"application/json": {"schema": {"$ref": COMPONENTS + name}}}
        return {"description": STATUSES[self.status]} | ({} if self.status == 304 else {"content": content})


def document(facts: Facts, version: str) -> dict[str, Any]:
    """The description, with the bounds that hold here (`facts`)."""
    requests = sorted({op.request for op in OPERATIONS if op.request}, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in requests], ref_template=COMPONENTS + "{model}")
    components = {name: bounded(schema, facts) for name, schema in schemas["$defs"].items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, facts)
    return {
        "openapi": "3.1.0",
        "info": {"title": "smoe", "version": version, "description": RULES},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": ERROR, "AnthropicError": ANTHROPIC_ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation, facts: Facts) -> dict[str, Any]:
    name = operation.path.strip("/").replace("/", "_").replace("{", "").replace("}", "") or "playground"
    described: dict[str, Any] = {
        "operationId": f"{operation.method}_{name}",
        "summary": operation.summary,
        "responses": _responses(operation),
        "security": [{}, {"key": []}],
    }
    if operation.parameters:
        described["parameters"] = [bounded(parameter, facts) for parameter in operation.parameters]
    if operation.request:
        schema = {"$ref": COMPONENTS + operation.request.__name__}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _responses(operation: Operation) -> dict[str, Any]:
    content: dict[str, Mapping[str, Any]] = {operation.content_type: {"schema": operation.reply}}
    if operation.is_streamed:
        content["text/event-stream"] = {"schema": {}}
    responses: dict[str, Any] = {"200": {"description": STATUSES[200], "content": content}}
    for status in sorted({*ANYWHERE, *operation.statuses}):
        responses[str(status)] = _Error(status, operation.path).response
    if operation.reply.get("required") == ["status"]:  # health tells its state whatever its status is
        responses["503"]["content"] = content
    return responses
