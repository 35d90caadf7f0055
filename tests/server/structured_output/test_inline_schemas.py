"""server/structured_output/inline_schemas.py: every schema of a grammar in Lark's notation is found."""

import json
from typing import Any

import pytest

from server.errors import ApiError
from server.structured_output.inline_schemas import MAX_INLINE_SCHEMAS, inline_schemas

LARGE = {"type": "integer", "multipleOf": 10_000_019}
TEXT = json.dumps(LARGE)


def found(grammar: str) -> list[Any]:
    return list(inline_schemas(grammar, "g"))


@pytest.mark.parametrize(
    "grammar",
    [
        f"start: %json {TEXT}",
        f"start: %json{TEXT}",
        f"start: a\n# %json {{\na: %json \t\r\n\n {json.dumps(LARGE, indent=3)} | b\nb: /x/",
        f"start: %lark {{ start: a\n a: %lark {{ start: %json {TEXT} }} }}",
        f'start: "%json {{" %json {TEXT} "}}"',
        f'start: /"/ %json {TEXT} /"/',
        f"start: /[/]/ %json {TEXT}",
        f'start: %json "%json" %json {TEXT}',
        f"start: %json {TEXT.replace('multipleOf', chr(92) + 'u006dultipleOf')}",
        "start: %json " + TEXT.replace("{", '{"multipleOf": 3, '),
    ],
)
def test_a_schema_is_found_wherever_it_is(grammar: str) -> None:
    assert LARGE in found(grammar)


def test_a_mark_without_json_is_skipped() -> None:
    assert found('start: "%json" /%json {/ // %json {x}\n| %json {"a": } | %json [1] | %json') == []


def test_integers_of_any_length_are_read_as_llguidance_reads_them() -> None:
    assert found(f'start: %json {{"multipleOf": 1{"0" * 5000}}}') == [{"multipleOf": float("inf")}]


@pytest.mark.parametrize("levels", [70, 20_000])
def test_deep_nesting_is_refused(levels: int) -> None:
    with pytest.raises(ApiError, match="levels"):
        found(f"start: %json {'[' * levels}{']' * levels}")


def test_the_number_of_schemas_is_bounded() -> None:
    assert len(found("start: a\n" + "a: %json {}\n" * MAX_INLINE_SCHEMAS)) == MAX_INLINE_SCHEMAS
    with pytest.raises(ApiError, match="more than"):
        found("start: a\n" + "a: %json {}\n" * (MAX_INLINE_SCHEMAS + 1))
