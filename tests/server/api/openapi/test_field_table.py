"""server/api/openapi/field_table.py: types, ranges and defaults in words, in escaped text."""

import pytest

from server.api.openapi.descriptions import NOT_SUPPORTED
from server.api.openapi.field_table import field_table, type_in_words


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 8}, "integer, at least <code>1</code>, at most <code>8</code>"),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "integer"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string"),
        ({"enum": ["a", None]}, "one of <code>&quot;a&quot;</code>, <code>null</code>"),
        ({"const": True}, "<code>true</code>"),
        ({"type": ["string", "null"]}, "string or null"),
        ({"type": "array", "items": {"$ref": "#/x/Y"}}, "array of <a href='#Y'>Y</a>"),
        ({"type": "string", "pattern": "<b>"}, "string, matches <code>&lt;b&gt;</code>"),
        ({}, "any value"),
    ],
)
def test_a_type_is_said_in_words(schema: dict[str, object], words: str) -> None:
    assert type_in_words(schema) == words


def test_a_row_has_the_default_the_star_and_the_sentence() -> None:
    fields = {"n": {"type": "integer", "default": 0, "description": "Use `n` < 2."}, "t": {"type": "string"}}
    html = field_table(fields, ["n"], "Field")
    assert "<td><code>n</code> *<td>integer; default <code>0</code><td>Use <code>n</code> &lt; 2." in html
    assert "<td><code>t</code><td>string<td>" in html


@pytest.mark.parametrize("value", [None, "", [], {}])
def test_an_empty_default_is_not_shown(value: object) -> None:
    assert "default" not in field_table({"n": {"default": value}}, (), "Field")


def test_members_of_objects_without_a_name_have_rows_of_their_own() -> None:
    inner = {"type": "object", "properties": {"index": {"type": "integer"}}}
    html = field_table({"choices": {"type": "array", "items": inner}, "usage": inner}, (), "Field")
    assert "<code>choices[].index</code>" in html and "<code>usage.index</code>" in html


def test_unsupported_fields_are_named_below_the_table() -> None:
    html = field_table({"audio": {"enum": [None], "description": NOT_SUPPORTED}}, (), "Field")
    assert html.endswith("<p>Not supported (<code>audio</code>): only values that ask for nothing are accepted.</p>")


def test_required_fields_come_first_and_names_of_other_servers_last() -> None:
    fields = {"regex": {"description": "The name for `a` in SGLang."}, "n": {}, "prompt": {}}
    html = field_table(fields, ["prompt"], "Field")
    places = [html.index(f"<code>{name}</code>") for name in ("prompt", "n", "regex")]
    assert places == sorted(places)
