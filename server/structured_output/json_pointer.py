"""Follow a JSON pointer inside a schema (RFC 6901)."""

import re
from urllib.parse import unquote

from server.strict_json import JsonValue


def at_pointer(root: JsonValue, reference: str) -> JsonValue:
    """Return the value at a reference such as `#/$defs/name`. Raises LookupError if it leads nowhere, or outside."""
    if reference != "#" and not reference.startswith("#/"):
        raise LookupError
    value = root
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and re.fullmatch("[0-9]{1,6}", key) and int(key) < len(value):
            value = value[int(key)]
        else:
            raise LookupError
    return value
