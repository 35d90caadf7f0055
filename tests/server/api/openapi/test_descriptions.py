"""The API's words: every field has a sentence, its unit and its default; no sentence describes a field that is gone."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from server.api.app import ROUTES
from server.api.openapi import Facts, document
from server.api.openapi.descriptions import NOT_SUPPORTED, describe_reply, describe_request, plain_name
from server.api.openapi.reply_fields import PARAMETERS, REPLY_FIELDS
from server.api.openapi.request_fields import REQUEST_FIELDS

Schema = Mapping[str, Any]

DOCUMENT = document(ROUTES, Facts(("m",), vocab_size=100, max_model_len=50), "1")
OPERATIONS = [operation for methods in DOCUMENT["paths"].values() for operation in methods.values()]
COMPONENTS: Mapping[str, Schema] = DOCUMENT["components"]["schemas"]
REPLY_COMPONENTS = ("Error", "AnthropicError", "OllamaError")
SENTENCE = re.compile(r'[A-Z`\["0-9].*[.)]')
MAX_CHARS = 240


def request_fields() -> Iterator[tuple[str, str, Schema]]:
    """Yield object, field and schema of every field of a body."""
    forms = [
        content["schema"]
        for operation in OPERATIONS
        for content in operation.get("requestBody", {}).get("content", {}).values()
        if "properties" in content["schema"]
    ]
    objects = [(name, schema) for name, schema in COMPONENTS.items() if name not in REPLY_COMPONENTS]
    for name, schema in [*objects, *(("UploadForm", form) for form in forms)]:
        yield from ((name, field, of) for field, of in schema.get("properties", {}).items())


def reply_fields(schema: Any, parent: str = "") -> Iterator[tuple[str, str, Schema]]:
    """Yield parent, field and schema of every field below a schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from reply_fields(item, parent)
    elif isinstance(schema, Mapping):
        for key, item in schema.items():
            if key != "properties":
                yield from reply_fields(item, parent)
        for field, of in schema.get("properties", {}).items():
            yield parent, field, of
            yield from reply_fields(of, field)


def all_reply_fields() -> list[tuple[str, str, Schema]]:
    replies = [response for operation in OPERATIONS for response in operation["responses"].values()]
    return [*reply_fields(replies), *reply_fields([COMPONENTS[name] for name in REPLY_COMPONENTS])]


def parameters() -> list[Schema]:
    return [parameter for operation in OPERATIONS for parameter in operation.get("parameters", ())]


def test_every_field_and_parameter_has_a_sentence() -> None:
    described = [*request_fields(), *all_reply_fields(), *(("URL", one["name"], one) for one in parameters())]
    assert len(described) > 300
    wrong = {
        f"{parent}.{field}"
        for parent, field, schema in described
        if not SENTENCE.fullmatch(schema.get("description", "")) or len(schema["description"]) > MAX_CHARS
    }
    assert wrong == set()


def unused(table: Mapping[str, str], described: list[tuple[str, str]]) -> set[str]:
    """Return the keys that no field takes its sentence from: OBJECT.FIELD goes before FIELD."""
    used = {f"{parent}.{field}" if f"{parent}.{field}" in table else field for parent, field in described}
    return set(table) - used


def test_no_sentence_is_left_over() -> None:
    requests = [(name, field) for name, field, of in request_fields() if of["description"] != NOT_SUPPORTED]
    assert unused(REQUEST_FIELDS, requests) == set()
    assert unused(REPLY_FIELDS, [(parent, field) for parent, field, _ in all_reply_fields()]) == set()
    assert unused(PARAMETERS, [("", one["name"]) for one in parameters()]) == set()


def is_optional_number(schema: Schema) -> bool:
    kinds = {part.get("type") for part in schema.get("anyOf", ())}
    return bool(kinds & {"integer", "number"}) and "null" in kinds and schema.get("default") is None


def test_a_number_without_a_default_says_what_its_absence_means() -> None:
    numbers = [(field, of["description"]) for _, field, of in request_fields() if is_optional_number(of)]
    assert len(numbers) > 20
    assert {field for field, words in numbers if "If absent" not in words} == set()


def test_a_time_names_its_unit() -> None:
    units = {"_ms": "milliseconds", "_s": "second"}
    times = [(field, of) for _, field, of in [*request_fields(), *all_reply_fields()]]
    for suffix, unit in units.items():
        described = {field: of["description"] for field, of in times if field.endswith(suffix)}
        assert described and all(unit in words.lower() for words in described.values()), described


def test_unsupported_fields_of_other_servers_are_named_as_such() -> None:
    properties = COMPONENTS["ChatCompletionRequest"]["properties"]
    assert properties["audio"]["description"] == properties["functions"]["description"] == NOT_SUPPORTED
    assert properties["seed"]["description"] != NOT_SUPPORTED


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("server__schemas__tools__Tool", "ChatTool"),
        ("server__schemas__messages_api__request__Tool", "MessagesTool"),
        ("server__schemas__responses_api__tools__ToolChoice", "ResponsesToolChoice"),
        ("Turn", "Turn"),
    ],
)
def test_objects_have_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain
    assert not [component for component in COMPONENTS if "__" in component]


def test_the_parents_own_sentence_goes_first() -> None:
    own, general = "ResponsesRequest.text", "text_1"
    fields = {"text": {"type": "string"}, "text_1": {}}
    described = describe_request("ResponsesRequest", {"properties": fields})["properties"]
    assert described["text"]["description"] == REQUEST_FIELDS[own]
    assert described["text_1"]["description"] == REQUEST_FIELDS[general]
    reply = describe_reply({"properties": {"layers": {"items": {"properties": {"tokens": {}}}}, "tokens": {}}})
    inner = reply["properties"]["layers"]["items"]["properties"]["tokens"]
    assert inner["description"] != reply["properties"]["tokens"]["description"]
