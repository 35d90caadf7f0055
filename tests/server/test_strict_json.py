"""server/strict_json.py: each kind of invalid JSON is a 400 with its own code."""

import json
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ApiError
from server.strict_json import MAX_CONTAINERS, MAX_DEPTH, parse_object

KEYS = st.text(max_size=8)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
OBJECTS = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))
)


@given(OBJECTS, st.booleans())
@settings(deadline=None)
def test_every_strict_object_is_parsed_unchanged(value: dict[str, object], ascii_only: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=64))
@settings(deadline=None)
def test_any_bytes_parse_or_raise_a_400(body: bytes) -> None:
    try:
        parsed: object = parse_object(body)
    except ApiError as error:
        parsed = error
    assert isinstance(parsed, dict) or (isinstance(parsed, ApiError) and parsed.status == 400 and parsed.code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b" \n", "invalid_json"),
        (b"null", "invalid_type"),
        (b"[]", "invalid_type"),
        (b'"x"', "invalid_type"),
        (b"1", "invalid_type"),
        (b"true", "invalid_type"),
        (b'{"a":1,}', "invalid_json"),
        (b"{'a':1}", "invalid_json"),
        (b'{"a":1} // no', "invalid_json"),
        (b"{} {}", "invalid_json"),
        (b'{"a":"\xff"}', "invalid_json"),
        ('{"a":1}'.encode("utf-16"), "invalid_json"),
        ('{"a":1}'.encode("utf-16-le"), "invalid_json"),
        (b'\xef\xbb\xbf{"a":1}', "invalid_json"),
        (b'{"a":NaN}', "invalid_json"),
        (b'{"a":Infinity}', "invalid_json"),
        (b'{"x":[{"a":-Infinity}]}', "invalid_json"),
        (b'{"a":1e999}', "invalid_json"),
        (b'{"a":9223372036854775808}', "integer_above_max_value"),
        (b'{"a":-9223372036854775809}', "integer_below_min_value"),
        (b'{"a":' + b"9" * 5000 + b"}", "integer_above_max_value"),
        (b'{"n":1,"n":3}', "invalid_json"),
        (b'{"x":[{"n":1,"n":1}]}', "invalid_json"),
        (b'{"a":"\\ud800"}', "invalid_json"),
        (b'{"a":["\\ude00\\ud83d"]}', "invalid_json"),
        (b'{"\\udfff":1}', "invalid_json"),
        (b'{"a":"\xed\xa0\x80"}', "invalid_json"),
        (b'{"a":' * 1000, "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":[' + b"[]," * MAX_CONTAINERS + b"[]]}", "invalid_json"),
    ],
    ids=lambda value: str(value[:24]),
)
def test_each_kind_of_bad_body_has_its_code(body: bytes, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_a_huge_integer_is_reported_with_its_parameter() -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(b'{"model":"m","messages":[{"n":' + b"1" * 30 + b"}]}")
    assert caught.value.param == "messages[0].n"


def test_a_surrogate_pair_is_one_character_and_brackets_in_strings_do_not_nest() -> None:
    assert parse_object(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}
    text = "[" * (MAX_DEPTH + 1) + '\\"{'
    assert parse_object(json.dumps({"a": text}).encode()) == {"a": text}


def test_the_deepest_allowed_document_parses_and_one_level_more_does_not() -> None:
    inner = MAX_DEPTH - 1
    assert parse_object(b'{"a":' + b"[" * inner + b"]" * inner + b"}")
    with pytest.raises(ApiError):
        parse_object(b'{"a":' + b"[" * (inner + 1) + b"]" * (inner + 1) + b"}")


def test_64_bits_are_kept_exactly_and_small_numbers_stay_finite() -> None:
    parsed = parse_object(b'{"low":-9223372036854775808,"high":9223372036854775807,"tiny":1e-400,"zero":-0.0}')
    assert parsed == {"low": -(2**63), "high": 2**63 - 1, "tiny": 0.0, "zero": 0.0}
    assert math.copysign(1, float(str(parsed["zero"]))) == -1


def test_a_list_of_token_ids_costs_no_call_per_id() -> None:
    """A call for each id, to check its size, took most of the time of a long list and held the interpreter's lock."""
    ids = [500, 0, -7, 10**17, *range(20_000)]
    calls: list[str] = []
    body = json.dumps({"tokens": ids}).encode()
    sys.setprofile(lambda frame, event, argument: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        parsed = parse_object(body)
    finally:
        sys.setprofile(None)
    assert parsed == {"tokens": ids}
    assert len(calls) < 100, calls[:100]


def test_one_long_integer_among_many_short_ones_is_found() -> None:
    body = json.dumps({"tokens": [*range(1000), 2**63, *range(1000)]}).encode()
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert (caught.value.code, caught.value.param) == ("integer_above_max_value", "tokens[1000]")
