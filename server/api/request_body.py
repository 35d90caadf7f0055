"""Read a request's body: check its headers, parse strict JSON, validate it by the schema, and list ignored fields."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from engine.messages import Ready
from server.errors import (
    prompt_too_long,
    unknown_parameter,
    unsupported_content_encoding,
    unsupported_content_type,
)
from server.generation.state import state_of, tenant_of
from server.schemas.conversation import MAX_MESSAGES
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
FORM_TYPE = "application/x-www-form-urlencoded"
BROWSERS_HEADERS = ("origin", "referer", "sec-fetch-site")  # a page's form is sent with one of them or more

Model = TypeVar("Model", bound=RequestModel)


async def read_request(
    http: HttpRequest, model_class: type[Model], *, takes_form_type: bool = False
) -> tuple[Model, dict[str, str]]:
    """Return the request, and the headers that name its ignored fields.

    `takes_form_type`: JSON may be called a form, as `curl -d` calls it, by programs that are no browser.
    Raises ApiError 400 or 415; with --strict-params, 400 for fields that would be ignored.
    """
    _check_headers(http, takes_form_type=takes_form_type)
    state = state_of(http)
    body = await http.body()
    ready = state.engine.ready
    request, ignored = await state.heavy_work.run(
        lambda: _parsed(body, model_class, ready), size=len(body), tenant=tenant_of(http)
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
    members = _members(type(request))
    nested = {
        name
        for sent_as, value in body.items()
        if sent_as in members and isinstance(value, dict | list)
        for name in _unknown_in(getattr(request, members[sent_as]), value, sent_as)
    }
    return [*top, *sorted(nested | set(request.ignored_parts))][:MAX_UNKNOWN_FIELDS]


def _check_headers(http: HttpRequest, *, takes_form_type: bool) -> None:
    """Raise ApiError 415. A page of another origin can send forms without being asked; browsers say where from."""
    if http.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise unsupported_content_encoding()
    content_types = http.headers.getlist("content-type")
    named = [value.split(";")[0].strip().lower() for value in content_types]
    if named == [FORM_TYPE] and takes_form_type and not any(name in http.headers for name in BROWSERS_HEADERS):
        return
    if named != ["application/json"]:
        raise unsupported_content_type()


def _parsed(body: bytes, model_class: type[Model], ready: Ready | None) -> tuple[Model, list[str]]:
    """Return the request, and the names of its unknown fields. A megabyte of small values takes about 0.2 s.

    `ready`: None if no model is loaded.
    """
    fields = parse_object(body)
    if ready is not None:
        _check_num_turns(model_class, fields, ready)
    request = validate(model_class, fields)
    return request, unknown_params(request, fields)


def _check_num_turns(model_class: type[RequestModel], fields: dict[str, JsonValue], ready: Ready) -> None:
    """Raise ApiError 400 for a conversation of more turns than the context has tokens, before they are validated,
    which takes most of the time; unless the request says how a long one is cut. A list beyond the schema's own bound
    gets the schema's error."""
    turns = fields.get(model_class.turns_field) if model_class.turns_field else None
    max_turns = ready.max_prompt_tokens
    if isinstance(turns, list) and max_turns < len(turns) <= MAX_MESSAGES and not model_class.cuts_turns(fields):
        raise prompt_too_long(len(turns), max_turns, ready.max_model_len, model_class.turns_field or "")


@cache
def _members(model_class: type[RequestModel]) -> Mapping[str, str]:
    """Return the attribute of each field, by the name under which it is sent."""
    return {field.alias or name: name for name, field in model_class.model_fields.items()}


def _unknown_in(value: object, raw: JsonValue, path: str) -> Iterator[str]:
    """Yield the unknown fields inside the value of the field `path`."""
    if isinstance(value, RequestModel) and isinstance(raw, dict):
        members = _members(type(value))
        for name, item in raw.items():
            if name not in members:
                if item is not None and name not in value.unsupported and not value.is_idle(name, item):
                    yield f"{path}.{name}" if is_printable(name) else UNPRINTABLE
            elif isinstance(item, dict | list):
                yield from _unknown_in(getattr(value, members[name]), item, f"{path}.{name}")
    elif isinstance(value, list) and isinstance(raw, list) and value and isinstance(value[0], RequestModel):
        for inner, sent in zip(value, raw, strict=False):
            yield from _unknown_in(inner, sent, f"{path}[]")
