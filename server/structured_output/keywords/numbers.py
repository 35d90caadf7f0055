"""Bounds of numbers, and counts, as llguidance follows them.

It computes with 64-bit integers and lets a bound through that is an integer and not allowed itself, if the other bound
lies before the next integer.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Final

from server.strict_json import JsonValue
from server.structured_output.keywords.document import JsonObject
from server.structured_output.schema_places import subschemas

COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
FARTHEST = 2**63 - 1024  # the largest double among the integers of 64 bits
NEAREST = 1e-80  # a lower bound above 0 has at most so many places
STEP = 1e-20  # from 0, for a bound of 0 that is not allowed itself
_DROPPED: Final = None


def with_bounds_that_hold(schema: JsonObject) -> JsonObject:
    """Return the schema with the same values, except that bounds beyond 9.2e18 or closer to 0 than 1e-80 allow less.

    Bounds that all doubles follow are left out. Counts such as 10.0 are written as integers.
    """
    inside = [value for _, value in subschemas(schema) if isinstance(value, dict)]
    bounds = {keyword: _numbers(keyword, inside) for keyword in (*LOWER, *UPPER)}
    if not any(_changes(value, bounds) for value in inside):
        return schema
    try:
        copied = deepcopy(schema)
    except RecursionError:
        return schema
    for _, value in subschemas(copied):
        if isinstance(value, dict):
            for keyword, number in _changes(value, bounds).items():
                if number is _DROPPED:
                    del value[keyword]
                else:
                    value[keyword] = number
    return copied


def _numbers(keyword: str, schemas: Iterable[JsonObject]) -> list[int | float]:
    return [number for schema in schemas if (number := _number(schema.get(keyword))) is not None]


def _changes(schema: JsonObject, bounds: Mapping[str, Sequence[int | float]]) -> dict[str, int | float | None]:
    """Return the keywords that have to be written differently. `bounds`: of the whole schema, by keyword; `allOf` and
    references let them meet in one number."""
    found: dict[str, int | float | None] = {}
    for keyword in COUNTS:
        count = schema.get(keyword)
        if isinstance(count, float) and count.is_integer():
            found[keyword] = int(count)
    for keywords, others, sign in ((LOWER, UPPER, 1), (UPPER, LOWER, -1)):
        for keyword in keywords:
            bound = _number(schema.get(keyword))
            if bound is not None and (held := _held(sign * bound)) != sign * bound:
                found[keyword] = None if held is None else sign * held
        excluded = _number(schema.get(keywords[1]))
        if excluded is not None and keywords[1] not in found:
            behind = _behind(sign * excluded, [sign * bound for keyword in others for bound in bounds[keyword]])
            if behind is not None:
                found[keywords[1]] = sign * behind
    return found


def _number(value: JsonValue) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _held(lower: int | float) -> int | float | None:
    """Return the lower bound, or the next one above it that llguidance follows; None if every double is above it."""
    if lower <= -sys.float_info.max:
        return None
    if lower < -FARTHEST:
        return -FARTHEST
    return NEAREST if 0 < lower < NEAREST else lower


def _behind(excluded: int | float, uppers: Iterable[int | float]) -> float | None:
    """Return a bound just above one that is not allowed itself; None if llguidance follows the latter."""
    if excluded < 0 or excluded != math.floor(excluded):
        return None
    closest = min((upper for upper in uppers if excluded < upper < excluded + 1), default=None)
    if closest is None:
        return None
    return math.nextafter(excluded, math.inf) if excluded else min(STEP, max(closest * 1e-6, NEAREST))
