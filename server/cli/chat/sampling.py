"""/set in a chat: fields of the next requests."""

from collections.abc import Callable, Mapping
from typing import Any

SETTABLE: Mapping[str, Callable[[str], int | float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "max_tokens": int,
    "seed": int,
    "experts_per_token": int,
}


def with_setting(fields: Mapping[str, object], text: str) -> dict[str, object]:
    """Return the fields after "NAME VALUE", or after "NAME", which leaves the value to the server.

    Raises ValueError (one line) for an unknown name, and for a value that is no number or that no request may have.
    """
    name, _, value = text.partition(" ")
    name = name.replace("-", "_")
    if name not in SETTABLE:
        raise ValueError(f"/set takes one of: {', '.join(SETTABLE)}")
    others = {key: own for key, own in fields.items() if key != name}
    if not value.strip():
        return others
    try:
        number = SETTABLE[name](value)
    except ValueError:
        kind = "a whole number" if SETTABLE[name] is int else "a number"
        raise ValueError(f"{name} takes {kind}, such as /set {name} 1") from None
    _check_range(name, number)
    return others | {name: number}


def _check_range(name: str, value: float) -> None:
    """Raise ValueError if the field of a request does not take the value."""
    from pydantic import TypeAdapter, ValidationError  # only now: a chat starts without the request models

    from server.schemas.chat import ChatCompletionRequest
    from server.settings.faults import describe

    kind: Any = ChatCompletionRequest.model_fields[name].annotation
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name} {describe(error.errors())}") from None


def described(fields: Mapping[str, object]) -> str:
    """Return the fields in one line."""
    own = ", ".join(f"{name} {fields[name]}" for name in SETTABLE if name in fields)
    return own or "all settings are the server's"
