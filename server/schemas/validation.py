"""Validate a parsed JSON object by a request model, and translate pydantic's errors to the API's.

Three kinds of field names: those that a model declares; those of features that this server does not support and of
other APIs' constraints, rejected with 400 so that no constraint is silently dropped; and unknown ones, which are
ignored and reported (`unknown_fields`).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError

from server.errors import ApiError, unknown_member, unsupported_parameter
from server.schemas.constraint_spellings import Kind, other_name
from server.strict_json import PLAIN_NAME, JsonValue

MAX_UNKNOWN_FIELDS = 32  # names in the header that reports ignored fields
UNPRINTABLE = "?"  # replaces names that cannot be part of a header
MISSING = "missing_required_parameter"
NO_CONSTRAINT = "This endpoint has no such constraint."
WRONG_FORM = ("invalid_type", "invalid_value")  # codes of values that may be right in another API
# A required field that is missing, and the one that was sent: the endpoint that takes it.
_ELSEWHERE = {
    ("messages", "prompt"): "/v1/completions",
    ("prompt", "messages"): "/v1/chat/completions",
    ("input", "messages"): "/v1/chat/completions",
}
_NESTED_FIELDS = frozenset(
    {
        "chat_template_kwargs",
        "input",
        "messages",
        "metadata",
        "options",
        "output_config",
        "output_format",
        "prediction",
        "response_format",
        "stream_options",
        "structured_outputs",
        "system",
        "text",
        "tool_choice",
        "tools",
    }
)
_UNION_TAGS = frozenset(
    {"function_call", "function_call_output", "message", "reasoning", "redacted_thinking", "text", "thinking"}
    | {"custom_tool_call", "custom_tool_call_output", "tool_result", "tool_use"}
    | {"custom_tool", "function_tool", "hosted_tool", "namespace_tool"}
)


class RequestModel(BaseModel):
    """Base of all request models: strict types, finite numbers, null counts as absent."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)

    # Fields that this server does not support, each with the values that have no effect and are accepted.
    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {}
    # Fields that proxies add to requests, each with the values that ask for nothing: not reported as ignored.
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {}
    instead: ClassVar[Mapping[str, str]] = {}  # fields that do the work of unsupported ones
    hints: ClassVar[Mapping[str, str]] = {}  # sentences added to errors of fields that other APIs write otherwise
    # The field for each kind of constraint that other APIs name otherwise. None: no kind means anything here.
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = None
    writes_output: ClassVar[bool] = True  # False: kinds of constraints without a field mean nothing, and are no error
    turns_field: ClassVar[str | None] = None  # list of a conversation's turns, each of which takes a token or more

    @classmethod
    def is_idle(cls, name: str, value: JsonValue) -> bool:
        """Return whether an unknown field asks for nothing with this value, so that it is not reported."""
        return _is_one_of(value, cls.harmless.get(name, ()))

    @classmethod
    def cuts_turns(cls, body: Mapping[str, JsonValue]) -> bool:
        """Return whether a request says that a conversation that is too long is cut."""
        return body.get("truncate_prompt_tokens") is not None

    @property
    def ignored_parts(self) -> list[str]:
        """Parts of known fields that have no effect, such as tools that only another server can run."""
        return []

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: object) -> object:
        """Drop null members, which OpenAI's clients send for absent fields."""
        if not isinstance(value, dict) or None not in value.values():
            return value
        return {key: item for key, item in value.items() if item is not None}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add to the schema null for optional fields, and unsupported fields with their accepted values."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        members = schema.setdefault("properties", {})
        for name in members.keys() - {*schema.get("required", ())}:
            members[name] = _or_null(members[name])
        for name, harmless in cls.unsupported.items():
            members[name] = {"enum": [*harmless, None]}
        return schema


def _or_null(schema: JsonSchemaValue) -> JsonSchemaValue:
    if {"type": "null"} in schema.get("anyOf", ()):
        return schema
    described: JsonSchemaValue = {key: schema.pop(key) for key in ("default", "description") if key in schema}
    return {"anyOf": [schema, {"type": "null"}], **described}


class ConstrainingObject(RequestModel):
    """Base of objects inside a request that have a constraint: rejects it under the names of other APIs."""

    path: ClassVar[str]  # of the object in the request

    @model_validator(mode="before")
    @classmethod
    def _reject_other_names(cls, value: object) -> object:
        if not isinstance(value, dict) or cls.constraint_fields is None:
            return value
        for name in sorted(value.keys() - cls.model_fields.keys()):
            kind = _constrains(name, value[name])
            instead = None if kind is None else cls.constraint_fields.get(kind)
            if instead is not None and value[name] != value.get(instead):
                raise _elsewhere(f"{cls.path}.{name}", f"Send '{cls.path}.{instead}' instead.")
        return value


Model = TypeVar("Model", bound=RequestModel)


def validate(model_class: type[Model], body: dict[str, JsonValue]) -> Model:
    """Return the request in `body` (from strict_json.parse_object). Raises ApiError 400 for the first fault."""
    _reject_unsupported(model_class, body, None)
    _reject_other_names(model_class, body)
    try:
        return model_class.model_validate(body)
    except ValidationError as error:
        fault = _api_error(error.errors(include_input=False, include_url=False)[0])
        raise _with_hint(fault, model_class, body) from None


def _with_hint(error: ApiError, model_class: type[RequestModel], body: dict[str, JsonValue]) -> ApiError:
    """Add how to write a field of a wrong form, and where a request belongs that has another endpoint's field instead
    of a required one."""
    hint = model_class.hints.get(error.param or "")
    if hint is not None and error.code in WRONG_FORM:
        error.message += f" {hint}"
    for (missing, sent), url in _ELSEWHERE.items():
        if error.code == MISSING and error.param == missing and sent in body:
            error.message += f" '{sent}' is a field of {url}."
    return error


def unknown_fields(model_class: type[RequestModel], body: dict[str, JsonValue]) -> list[str]:
    """Return the unknown names at the top of `body`, fit for a header; unfit names appear as one UNPRINTABLE. One with
    null counts as absent."""
    known = model_class.model_fields.keys() | model_class.unsupported.keys()
    idle = {name for name in model_class.harmless if model_class.is_idle(name, body.get(name))}
    sent = {name for name, value in body.items() if value is not None}
    return fit_for_header(sent - known - idle)


def fit_for_header(names: Iterable[str]) -> list[str]:
    """Return a client's names sorted; names that are unfit for a header appear as one UNPRINTABLE."""
    return sorted({name if is_printable(name) else UNPRINTABLE for name in names})[:MAX_UNKNOWN_FIELDS]


def named_parts(field: str, names: Iterable[str]) -> list[str]:
    """Return ("tools", ["a"]) as ["tools[].a"], fit for a header."""
    return [name if name == UNPRINTABLE else f"{field}[].{name}" for name in fit_for_header(names)]


def is_printable(name: str) -> bool:
    """Return whether a client's name is fit for a header."""
    return PLAIN_NAME.fullmatch(name) is not None


def _reject_unsupported(model_class: type[RequestModel], body: dict[str, JsonValue], path: str | None) -> None:
    for name, harmless in model_class.unsupported.items():
        value = body.get(name)
        if not _is_one_of(value, harmless):
            raise unsupported_parameter(name if path is None else f"{path}.{name}", _hint(model_class, name))


def _reject_other_names(model_class: type[RequestModel], body: dict[str, JsonValue]) -> None:
    """Reject constraints under names of other APIs, except values that ask for nothing or repeat this API's field."""
    fields = model_class.constraint_fields
    if fields is None:
        return
    for name in sorted(body.keys() - model_class.model_fields.keys() - model_class.unsupported.keys()):
        value, kind = body[name], _constrains(name, body[name]) or _lifts_limit(model_class, name, body)
        if kind == "members":
            _reject_members(name, value, fields, model_class)
        elif kind is not None and kind not in fields and model_class.writes_output:
            raise _elsewhere(name, NO_CONSTRAINT)
        elif kind is not None and kind in fields and value != body.get(fields[kind]):
            raise _elsewhere(name, f"Send '{fields[kind]}' instead.")


def _reject_members(name: str, members: JsonValue, fields: Mapping[Kind, str], model_class: type[RequestModel]) -> None:
    """Reject the first constraint in an object of options that another API has at the top of a request, or in such an
    object inside it. Any other value than an object has none."""
    for member, value in members.items() if isinstance(members, dict) else ():
        kind = _constrains(member, value)
        if kind == "members":
            _reject_members(name, value, fields, model_class)
        elif kind is not None and (kind in fields or model_class.writes_output):
            own = member if member in model_class.model_fields else fields.get(kind)
            raise _elsewhere(name, NO_CONSTRAINT if own is None else _instead_of_member(own))


def _instead_of_member(field: str) -> str:
    """`field`: the field to send, with its path if it is not at the top of the body."""
    return f"Send '{field}' instead." if "." in field else f"Send '{field}' at the top of the body instead."


def _lifts_limit(model_class: type[RequestModel], name: str, body: dict[str, JsonValue]) -> Kind | None:
    """Return "limit" if another API's name asks for no limit where this endpoint has one of its own: completions."""
    other = other_name(name) if is_printable(name) else None
    if other is None or other.kind != "limit" or body[name] is None:
        return None
    field = (model_class.constraint_fields or {}).get("limit", "")
    known = model_class.model_fields.get(field)
    has_limit = known is not None and isinstance(known.default, int) and body.get(field) is None
    return "limit" if has_limit else None


def _constrains(name: str, value: JsonValue) -> Kind | None:
    other = other_name(name) if is_printable(name) else None
    return None if other is None or _is_one_of(value, other.harmless) else other.kind


def _elsewhere(name: str, hint: str) -> ApiError:
    return unsupported_parameter(name, f"'{name}' is not supported here. {hint}")


def _is_one_of(value: JsonValue, harmless: Iterable[JsonValue]) -> bool:
    """Return whether a value is null or equal to one of these, types included: 0 is not false."""
    return value is None or any(type(value) is type(item) and value == item for item in harmless)


def _hint(model_class: type[RequestModel], name: str) -> str | None:
    other = model_class.instead.get(name)
    hint = model_class.hints.get(name) if other is None else f"Send '{other}' instead."
    return None if hint is None else f"'{name}' is not supported here. {hint}"


def check_length(items: list[object], limit: int) -> None:
    """Reject a list that is too long before any of its items is validated. For "before" validators."""
    if len(items) > limit:
        raise PydanticCustomError("too_long", "", {"max_length": limit})


def text_or_list(value: object, as_item: Callable[[str], object]) -> object:
    """Turn a text into a list of one item, made by `as_item`. For "before" validators."""
    if isinstance(value, str):
        return [as_item(value)]
    if not isinstance(value, list):
        raise PydanticCustomError("text_or_list_type", "")
    return value


def reject_unsupported_members(model_class: type[RequestModel], items: list[JsonValue], field: str) -> None:
    """Raise ApiError 400 for unsupported fields in a list of objects."""
    for index, item in enumerate(items):
        if isinstance(item, dict):
            _reject_unsupported(model_class, item, f"{field}[{index}]")


def _api_error(error: ErrorDetails) -> ApiError:
    """Translate pydantic's error, whose text names Python types and may repeat the input."""
    kind, context = error["type"], error.get("ctx", {})
    param = _param(error["loc"])
    if kind == "missing":
        return ApiError(f"'{param}' is required.", param=param, code=MISSING)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_type(param, context.get("expected_tags"))
    if kind == "extra_forbidden":
        return unknown_member(param, is_named=f".{param}".endswith(f".{error['loc'][-1]}"))
    if kind in _LENGTH_CODES:
        code, message = _LENGTH_CODES[kind]
        limit = context.get("max_length", context.get("min_length"))
        return ApiError(message.format(param=param, limit=limit), param=param, code=code)
    if kind in _BOUNDS:
        return _out_of_range(param, kind, context[_BOUNDS[kind]])
    if kind == "literal_error":
        message = f"'{param}' must be one of {context['expected']}."
        return ApiError(message, param=param, code="invalid_value")
    if kind == "string_pattern_mismatch":
        return ApiError(f"'{param}' has the wrong format.", param=param, code="invalid_value")
    expected = _EXPECTED.get(kind, "another type")
    return ApiError(f"'{param}' has the wrong type: expected {expected}.", param=param, code="invalid_type")


def _unknown_type(param: str | None, expected: str | None) -> ApiError:
    """`expected`: the types that there are; None if the object has no type."""
    if expected is None:
        message, code = f"'{param}' must have a 'type'.", "missing_required_parameter"
    else:
        message, code = f"'{param}.type' must be one of {expected}.", "unsupported_value"
    return ApiError(message, param=f"{param}.type", code=code)


_LENGTH_CODES = {
    "too_long": ("array_above_max_length", "'{param}' may have at most {limit} entries."),
    "too_short": ("empty_array", "'{param}' must not be empty."),
    "string_too_long": ("string_above_max_length", "'{param}' may have at most {limit} characters."),
    "string_too_short": ("empty_string", "'{param}' must not be empty."),
}
_BOUNDS = {"less_than_equal": "le", "less_than": "lt", "greater_than_equal": "ge", "greater_than": "gt"}
_RELATIONS = {"le": "at most", "lt": "below", "ge": "at least", "gt": "above"}
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "prompt_type": "a string, an array of strings, of token ids, or of arrays of token ids",
    "list_type": "an array",
    "text_or_list_type": "a string or an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _out_of_range(param: str | None, kind: str, bound: int | float) -> ApiError:
    number = "integer" if isinstance(bound, int) else "decimal"
    direction = "above_max" if kind.startswith("less") else "below_min"
    message = f"'{param}' must be {_RELATIONS[_BOUNDS[kind]]} {bound}."
    return ApiError(message, param=param, code=f"{number}_{direction}_value")


def _param(location: tuple[int | str, ...]) -> str | None:
    """Format ("messages", 0, "role") as messages[0].role.

    For fields outside _NESTED_FIELDS return the name alone: the keys inside them come from the client.
    """
    if not location:
        return None
    parts = location if location[0] in _NESTED_FIELDS else location[:1]
    path = str(parts[0])
    for before, part, after in zip(parts, parts[1:], [*parts[2:], None], strict=False):
        if isinstance(part, str) and not PLAIN_NAME.fullmatch(part):
            break
        if part in _UNION_TAGS and isinstance(before, int) and after is not None:
            continue  # a union's tag, which pydantic adds to the path
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path
