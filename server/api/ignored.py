"""Which fields of a request mean nothing here: at its top, and inside its messages, tools and other objects."""

from collections.abc import Iterator

from server.schemas.validation import MAX_UNKNOWN_FIELDS, UNPRINTABLE, RequestModel, printable, unknown_fields
from server.strict_json import JsonValue


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
