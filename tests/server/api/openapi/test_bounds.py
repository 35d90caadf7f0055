"""server/api/openapi/bounds.py: bounds by the names of fields, and no titles."""

import pytest

from server.api.openapi.bounds import Facts, Schema, bounded
from server.strict_json import INT64_MAX, INT64_MIN

FACTS = Facts(("m", "alias"), vocab_size=100, max_model_len=50, num_experts=8, dim=32)
LOADING = Facts(("m",))


@pytest.mark.parametrize(
    ("field", "facts", "bounds"),
    [
        ("seed", FACTS, (INT64_MIN, INT64_MAX)),
        ("tokens", FACTS, (0, 99)),
        ("tokens", LOADING, (0, INT64_MAX)),
        ("max_tokens", FACTS, (INT64_MIN, 50)),
        ("max_tokens", LOADING, (INT64_MIN, INT64_MAX)),
        ("experts_per_token", FACTS, (INT64_MIN, 8)),
        ("dimensions", FACTS, (INT64_MIN, 32)),
        ("dimensions", LOADING, (INT64_MIN, INT64_MAX)),
    ],
)
def test_integers_are_bounded_by_their_field(field: str, facts: Facts, bounds: tuple[int, int]) -> None:
    nested: Schema = {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}
    walked = bounded({"title": "T", "properties": {field: nested}}, facts)
    integer = walked["properties"][field]["anyOf"][0]["items"]
    assert (integer["minimum"], integer["maximum"]) == bounds
    assert "title" not in walked


def test_a_models_own_bounds_win() -> None:
    walked = bounded({"properties": {"max_tokens": {"type": "integer", "minimum": 1}}}, FACTS)
    assert walked["properties"]["max_tokens"] == {"type": "integer", "minimum": 1, "maximum": 50}


def test_a_model_is_one_of_the_served_names() -> None:
    assert bounded({"properties": {"model": {"type": "string", "maxLength": 9}}}, FACTS)["properties"]["model"] == {
        "type": "string",
        "enum": ["m", "alias"],
    }
    parameter = {"name": "model_id", "in": "path", "schema": {"type": "string"}}
    assert bounded(parameter, FACTS)["schema"] == {"enum": ["m", "alias"]}
