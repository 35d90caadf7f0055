"""Put sentences into the schemas of the API's description: from request_fields.py and reply_fields.py."""

from collections.abc import Mapping
from typing import Any

from server.api.openapi.operations import COMPONENTS
from server.api.openapi.reply_fields import PARAMETERS, REPLY_FIELDS
from server.api.openapi.request_fields import REQUEST_FIELDS

Schema = dict[str, Any]

NOT_SUPPORTED = "Not supported: only values that ask for nothing are accepted."
_OBJECTS_OF = {"messages_api": "Messages", "ollama_api": "Ollama", "responses_api": "Responses"}


def plain_name(name: str) -> str:
    """Return the name of a request object. Of equal names pydantic makes server__schemas__tools__Tool: ChatTool."""
    parts = name.split("__")
    if len(parts) < 3:
        return name
    return _OBJECTS_OF.get(parts[2], "Chat") + parts[-1]


def with_plain_names(schema: Any) -> Any:
    """Return part of a schema whose references have plain names."""
    if isinstance(schema, list):
        return [with_plain_names(item) for item in schema]
    if isinstance(schema, dict):
        return {key: with_plain_names(item) for key, item in schema.items()}
    if isinstance(schema, str) and schema.startswith(COMPONENTS):
        return COMPONENTS + plain_name(schema.removeprefix(COMPONENTS))
    return schema


def describe_request(name: str, schema: Mapping[str, Any]) -> Schema:
    """Return the schema of the request object `name` with a sentence for each field that has one."""
    fields = {
        field: _with_words(of, _request_words(name, field, of)) for field, of in schema.get("properties", {}).items()
    }
    return {**schema, "properties": fields} if fields else dict(schema)


def _request_words(name: str, field: str, schema: Mapping[str, Any]) -> str | None:
    is_unsupported = set(schema) == {"enum"} and None in schema["enum"]
    return NOT_SUPPORTED if is_unsupported else _words(REQUEST_FIELDS, name, field)


def describe_reply(schema: Any, parent: str = "") -> Any:
    """Return the schema of a reply with a sentence for each field. `parent`: the field that has this schema."""
    if isinstance(schema, list):
        return [describe_reply(item, parent) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    walked: Schema = {key: describe_reply(item, parent) for key, item in schema.items() if key != "properties"}
    if "properties" in schema:
        walked["properties"] = {
            field: _with_words(describe_reply(of, field), _words(REPLY_FIELDS, parent, field))
            for field, of in schema["properties"].items()
        }
    return walked


def describe_parameter(parameter: Mapping[str, Any], example: str | int | None) -> Schema:
    """Return a parameter of a URL with its sentence and an example."""
    described = _with_words(parameter, PARAMETERS.get(parameter["name"]))
    return described if example is None else {**described, "example": example}


def _words(table: Mapping[str, str], parent: str, field: str) -> str | None:
    return table.get(f"{parent}.{field}", table.get(field))


def _with_words(schema: Mapping[str, Any], words: str | None) -> Schema:
    return {**schema, "description": words} if words else dict(schema)
