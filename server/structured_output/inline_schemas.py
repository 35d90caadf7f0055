"""Find the JSON schemas inside a grammar: `%json {...}`, at any depth of `%lark {...}`."""

import json
import re
from collections.abc import Iterator

from server.errors import invalid_value
from server.strict_json import JsonValue

MAX_INLINE_SCHEMAS = 500
MAX_DEPTH = 64
_MARK = re.compile(r"%json[ \t\r\n]*")


def _as_integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)


# Reads everything that llguidance reads, and more: a text that it cannot read is an error in llguidance too.
_DECODER = json.JSONDecoder(parse_int=_as_integer, strict=False)


def inline_schemas(grammar: str, param: str) -> Iterator[dict[str, JsonValue]]:
    """Yield the object after each %json. Raises ApiError 400 if there are too many, or one is nested too deeply.

    Every occurrence counts, inside texts and comments too, so that no lexer has to agree with llguidance's. One without
    JSON behind it is skipped: outside texts and comments, llguidance refuses it.
    """
    for i, mark in enumerate(_MARK.finditer(grammar)):
        if i == MAX_INLINE_SCHEMAS:
            raise invalid_value(f"'{param}' has more than {MAX_INLINE_SCHEMAS} schemas (%json).", param)
        try:
            value, _ = _DECODER.raw_decode(grammar, mark.end())
        except ValueError:
            continue
        except RecursionError:
            raise _too_deep(param) from None
        if not _is_within(value, MAX_DEPTH):
            raise _too_deep(param)
        if isinstance(value, dict):
            yield value


def _is_within(value: JsonValue, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return True
    return False


def _children(value: JsonValue) -> list[JsonValue]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep(param: str) -> Exception:
    return invalid_value(f"'{param}' has a schema (%json) with more than {MAX_DEPTH} levels.", param)
