"""From a request's bytes to a request model: the headers that a JSON body needs, then strict JSON, then the schema."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from server.errors import unknown_parameter, unsupported_content_encoding, unsupported_content_type
from server.event_loop import INLINE_CHARS, off_loop
from server.generation.state import state_of
from server.schemas.validation import MAX_UNKNOWN_FIELDS, UNPRINTABLE, RequestModel, printable, unknown_fields, validate
from server.strict_json import JsonValue, parse_object

IGNORED_PARAMS_HEADER = "x-smoe-ignored-params"
SEPARATOR = ", "

Model = TypeVar("Model", bound=RequestModel)


async def read_request(http: HttpRequest, model_class: type[Model]) -> tuple[Model, dict[str, str]]:
    """The request, and the headers that tell the client what of it was ignored. Raises ApiError 400 or 415;
    under --strict-params also for what would be ignored."""
    _check_headers(http)
    state = state_of(http)
    body = await http.body()
    request, ignored = await off_loop(lambda: _parsed(body, model_class), heavy=len(body) > INLINE_CHARS)
    if not state.by_priority and "priority" in request.model_fields_set:
        ignored.append("priority")
    if ignored and state.strict_params:
        raise unknown_parameter(ignored[0] if ignored[0] != UNPRINTABLE else None)
    return request, ignoring({}, ignored)


def ignoring(headers: dict[str, str], names: Sequence[str]) -> dict[str, str]:
    """The headers, telling of these names as well; of no more than a header should carry."""
    told = headers.get(IGNORED_PARAMS_HEADER)
    all_names = [*(told.split(SEPARATOR) if told else []), *names][:MAX_UNKNOWN_FIELDS]
    return headers | {IGNORED_PARAMS_HEADER: SEPARATOR.join(all_names)} if all_names else headers


def _parsed(body: bytes, model_class: type[Model]) -> tuple[Model, list[str]]:
    """The request, and the names of its unknown fields. A megabyte of small values takes some 0.3 s."""
    fields = parse_object(body)
    request = validate(model_class, fields)
    return request, unknown_params(request, fields)


def _check_headers(http: HttpRequest) -> None:
    if http.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise unsupported_content_encoding()
    content_types = http.headers.getlist("content-type")
    if [value.split(";")[0].strip().lower() for value in content_types] != ["application/json"]:
        raise unsupported_content_type()


def unknown_params(request: RequestModel, body: dict[str, JsonValue]) -> list[str]:
    """Their names, fit for a header, those at the top first; `messages[].name` for a field of any message.

    `request` was made of `body`. Inside, null is no field: clients send back what they were sent.
    """
    top = unknown_fields(type(request), body)
    inside = {name for field in _fields(request, body) for name in _inside(*field)}
    return [*top, *sorted(inside)][:MAX_UNKNOWN_FIELDS]


def _fields(model: RequestModel, raw: dict[str, JsonValue]) -> Iterator[tuple[object, JsonValue, str]]:
    """Each known field: as it was understood, as it was sent, and its name."""
    for name, described in type(model).model_fields.items():
        sent_as = described.alias or name
        if sent_as in raw:
            yield getattr(model, name), raw[sent_as], sent_as


def _inside(value: object, raw: JsonValue, path: str) -> Iterator[str]:
    if isinstance(value, RequestModel) and isinstance(raw, dict):
        known = {described.alias or name for name, described in type(value).model_fields.items()}
        known |= value.unsupported.keys()
        for name, item in raw.items():
            if name not in known and item is not None:
                yield f"{path}.{name}" if printable(name) else UNPRINTABLE
        for inner, sent, name in _fields(value, raw):
            yield from _inside(inner, sent, f"{path}.{name}")
    elif isinstance(value, list) and isinstance(raw, list) and value and isinstance(value[0], RequestModel):
        for inner, sent in zip(value, raw, strict=False):
            yield from _inside(inner, sent, f"{path}[]")
