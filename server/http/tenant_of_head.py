"""Find the tenant of a request in the first bytes of its head, before the head is parsed.

This decides only about turns. The API key is checked later, by middleware.py, and a head without a known key takes
turns with all others of that kind.
"""

import re
from collections.abc import Callable, Sequence

_KEY = re.compile(rb"\n(?:authorization:[ \t]*bearer +|x-api-key:[ \t]*)([^\r\n]*)[\r\n]", re.IGNORECASE)


def tenant_finder(api_keys: Sequence[str]) -> Callable[[bytes], int | None]:
    """Return a function from bytes of a head to the index of its API key, or to None if they contain no known key.

    With fewer than two keys there is nobody to take turns with, and the function returns None.
    """
    if len(api_keys) < 2:
        return lambda data: None
    tenants = {key.encode(): tenant for tenant, key in enumerate(api_keys)}

    def find(data: bytes) -> int | None:
        found = _KEY.search(data)
        return tenants.get(found[1].rstrip(b" \t")) if found else None

    return find
