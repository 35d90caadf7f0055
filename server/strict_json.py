"""Parse a request's body strictly, before any other code sees it.

JSON parsers disagree on byte order marks, UTF-16, NaN, 1e999, repeated keys, integers of any length, lone surrogates
and unbounded nesting; Python's own accepts most of them silently. Here each is an error, so that later code never gets
a value that it could not echo, compare or store.
"""

import json
import math
import re
from typing import Never

from server.errors import ApiError, invalid_json, invalid_type

JsonValue = dict[str, "JsonValue"] | list["JsonValue"] | str | int | float | bool | None

MAX_DEPTH = 64  # levels of [ and { around a value
MAX_CONTAINERS = 100_000  # arrays and objects in total: each costs the parser far more than its two bytes
MAX_INT_DIGITS = 19
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# A string without a closing quote matches up to the end of the text. Otherwise each quote in it would be tried as a
# start, which takes quadratic time.
_STRING_OR_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+["\\]?|[\[{]++|[\]}]++', re.DOTALL)
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_INTEGER = b"0" * 19  # any so long run of digits, in the bytes that the table above gives
_SURROGATE = re.compile("[\ud800-\udfff]")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # names that may be repeated in errors and headers
_FAULTS = {  # by the beginnings of the parser's messages
    "Expecting property name": "expected a name in double quotes",
    "Expecting ':'": "expected a colon after the name",
    "Expecting ','": "expected a comma or the end",
    "Expecting value": "expected a value",
    "Extra data": "expected nothing more after the end",
    "Illegal trailing comma": "there is a comma before the end",
    "Invalid control": "a text has a line break or tab; write \\n or \\t",
    "Invalid \\": "a text has an unknown escape; write a backslash as \\\\",
    "Unterminated string": "a text has no closing quote",
}


def parse_object(body: bytes) -> dict[str, JsonValue]:
    """Parse the JSON object in `body`. Each leaf is a finite float, an int64, a bool, None, or a str valid in UTF-8.

    Raises ApiError 400: invalid_json if the body is not strict JSON, integer_above_max_value or integer_below_min_value
    for an integer beyond 64 bits, invalid_type if the document is not an object.
    """
    text = _text(body)
    check_nesting(text)
    has_long_integer = _LONG_INTEGER in body.translate(_DIGITS_AS_ZEROS)
    parsed = _parse(text, _checking_decoder if has_long_integer else _decoder)
    if has_long_integer or (b"\\u" in body and _ESCAPED_SURROGATE.search(body)):
        _check_leaves(parsed, None)
    if not isinstance(parsed, dict):
        raise invalid_type("The body must be a JSON object.")
    return parsed


def _text(body: bytes) -> str:
    if not body.strip(b" \t\r\n"):
        raise invalid_json("The body is empty; send a JSON object.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid_json(f"The body is not valid UTF-8 (byte {error.start}).") from None
    if text.startswith("\ufeff"):
        raise invalid_json("The body starts with a byte order mark; send plain UTF-8.")
    return text


def check_nesting(text: str) -> None:
    """Count brackets outside strings, so that the recursive parser never sees a deep document. Raises ApiError 400."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return  # not deep, wherever they are: a long list of numbers is not searched for strings
    depth = num_containers = 0
    for match in _STRING_OR_BRACKETS.finditer(text):
        run = match.group()
        if run[0] in "[{":
            depth += len(run)
            num_containers += len(run)
            if depth > MAX_DEPTH:
                raise invalid_json(f"The body is nested deeper than {MAX_DEPTH} levels.")
            if num_containers > MAX_CONTAINERS:
                raise invalid_json(f"The body has more than {MAX_CONTAINERS} arrays and objects.")
        elif run[0] in "]}":
            depth -= len(run)


def _parse(text: str, decoder: json.JSONDecoder) -> JsonValue:
    try:
        parsed: JsonValue = decoder.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise invalid_json(f"The body is not valid JSON ({place}){_reason(error.msg)}.") from None
    return parsed


def _reason(fault: str) -> str:
    """Return the parser's reason in plain words. Its own text may have a character of the body."""
    return next((f": {ours}" for theirs, ours in _FAULTS.items() if fault.startswith(theirs)), "")


def _unique_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise invalid_json("The body has an object with a repeated key.")
    return mapping


def _int64(digits: str) -> int | float:
    """Convert to an integer, or to an infinity beyond 64 bits; _finite refuses all other infinities.

    Checks the length first: converting thousands of digits is slow, and Python refuses more than 4,300.
    """
    is_negative = digits.startswith("-")
    if len(digits) - is_negative <= MAX_INT_DIGITS:
        value = int(digits)
        if INT64_MIN <= value <= INT64_MAX:
            return value
    return -math.inf if is_negative else math.inf


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise invalid_json("The body has a number too large for a double.")
    return value


def _no_constant(_name: str) -> Never:
    raise invalid_json("The body has NaN or Infinity, which are not JSON.")


# Integers of up to 18 digits fit into 64 bits: a call for each would take most of the time of a list of token ids.
_decoder = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_no_constant)
_checking_decoder = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_int=_int64, parse_float=_finite, parse_constant=_no_constant
)


def _check_leaves(value: JsonValue, path: str | None) -> None:
    """Refuse integers beyond 64 bits, and surrogates that are not part of a pair. Pairs are one character by now."""
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, float):
        _check_size(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_leaves(item, None if path is None else f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, path)
            _check_leaves(item, _member(path, key))


def _check_text(text: str, path: str | None) -> None:
    if _SURROGATE.search(text):
        message = "The body has a \\u escape of a lone surrogate, which is not a character."
        raise ApiError(message, param=path, code="invalid_json")


def _check_size(number: float, path: str | None) -> None:
    if math.isinf(number):
        code = "integer_above_max_value" if number > 0 else "integer_below_min_value"
        raise ApiError("The body has an integer beyond 64 bits.", param=path, code=code)


def _member(path: str | None, key: str) -> str | None:
    """Return the path of a member; None for a name that cannot be a parameter's, so that it is not repeated."""
    if not PLAIN_NAME.fullmatch(key):
        return None
    return key if path is None else f"{path}.{key}"
