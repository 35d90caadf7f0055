"""Read a request's body: check its headers, parse strict JSON, validate it by the schema, and list ignored fields."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from server.errors import unknown_parameter, unsupported_content_encoding, unsupported_content_type
from server.generation.state import state_of, tenant_of
from server.schemas.validation import (
    MAX_UNKNOWN_FIELDS,
    UNPRINTABLE,
    RequestModel,
    is_printable,
    unknown_fields,
    validate,
)
from server.strict_json import JsonValue, parse_object

IGNORED_PARAMS_HEADER = "x-smoe-ignored-params"
SEPARATOR = ", "

Model = TypeVar("Model", bound=RequestModel)


async def read_request(http: HttpRequest, model_class: type[Model]) -> tuple[Model, dict[str, str]]:
    """Return the request, and the headers that name its ignored fields.

    Raises ApiError 400 or 415; with --strict-params, 400 for fields that would be ignored.
    """
    _check_headers(http)
    state = state_of(http)
    body = await http.body()
    request, ignored = await state.heavy_work.run(
        lambda: _parsed(body, model_class), size=len(body), tenant=tenant_of(http)
    )
    if not state.by_priority and "priority" in request.model_fields_set:
        ignored.append("priority")
    if ignored and state.strict_params:
        raise unknown_parameter(ignored[0] if ignored[0] != UNPRINTABLE else None)
    return request, add_ignored_params({}, ignored)


def add_ignored_params(headers: dict[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the headers with `names` added to the ignored fields, of which at most MAX_UNKNOWN_FIELDS are named."""
    earlier = headers.get(IGNORED_PARAMS_HEADER)
    all_names = [*(earlier.split(SEPARATOR) if earlier else []), *names][:MAX_UNKNOWN_FIELDS]
    return headers | {IGNORED_PARAMS_HEADER: SEPARATOR.join(all_names)} if all_names else headers


def unknown_params(request: RequestModel, body: dict[str, JsonValue]) -> list[str]:
    """Return the names of unknown fields, fit for a header: first those at the top, then `messages[].name` and others.

    `request` is the model of `body`. Inside objects, null counts as absent: clients send back what they received.
    """
    top = unknown_fields(type(request), body)
    nested = {name for field in _fields(request, body) for name in _unknown_in(*field)}
    return [*top, *sorted(nested | set(request.ignored_parts))][:MAX_UNKNOWN_FIELDS]


def _check_headers(http: HttpRequest) -> None:
    if http.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise unsupported_content_encoding()
    content_types = http.headers.getlist("content-type")
    if [value.split(";")[0].strip().lower() for value in content_types] != ["application/json"]:
        raise unsupported_content_type()


def _parsed(body: bytes, model_class: type[Model]) -> tuple[Model, list[str]]:
    """Return the request, and the names of its unknown fields. A megabyte of small values takes about 0.3 s."""
    fields = parse_object(body)
    request = validate(model_class, fields)
    return request, unknown_params(request, fields)


def _fields(model: RequestModel, raw: dict[str, JsonValue]) -> Iterator[tuple[object, JsonValue, str]]:
    """Yield each known field that was sent: its validated value, its raw value, and its name."""
    for name, described in type(model).model_fields.items():
        sent_as = described.alias or name
        if sent_as in raw:
            yield getattr(model, name), raw[sent_as], sent_as


def _unknown_in(value: object, raw: JsonValue, path: str) -> Iterator[str]:
    """Yield the unknown fields inside the value of the field `path`."""
    if isinstance(value, RequestModel) and isinstance(raw, dict):
        known = {described.alias or name for name, described in type(value).model_fields.items()}
        known |= value.unsupported.keys()
        for name, item in raw.items():
            if name not in known and item is not None:
                yield f"{path}.{name}" if is_printable(name) else UNPRINTABLE
        for inner, sent, name in _fields(value, raw):
            yield from _unknown_in(inner, sent, f"{path}.{name}")
    elif isinstance(value, list) and isinstance(raw, list) and value and isinstance(value[0], RequestModel):
        for inner, sent in zip(value, raw, strict=False):
            yield from _unknown_in(inner, sent, f"{path}[]")
