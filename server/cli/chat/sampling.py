"""/set in a chat: fields of the next requests."""

from collections.abc import Callable, Mapping

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

    Raises ValueError (one line) for an unknown name or a value that is no number. Ranges are the server's to check.
    """
    name, _, value = text.partition(" ")
    name = name.replace("-", "_")
    if name not in SETTABLE:
        raise ValueError(f"/set takes one of: {', '.join(SETTABLE)}")
    others = {key: own for key, own in fields.items() if key != name}
    if not value.strip():
        return others
    try:
        return others | {name: SETTABLE[name](value)}
    except ValueError:
        kind = "a whole number" if SETTABLE[name] is int else "a number"
        raise ValueError(f"{name} takes {kind}, such as /set {name} 1") from None


def described(fields: Mapping[str, object]) -> str:
    """Return the fields in one line."""
    own = ", ".join(f"{name} {fields[name]}" for name in SETTABLE if name in fields)
    return own or "all settings are the server's"
