"""server/structured_output/value_groups.py: which subschemas of several schemas meet in one property or item."""

from typing import Any

from server.structured_output.value_groups import item_groups, property_groups

A, B, C, D = ({"title": name} for name in "abcd")


def test_a_property_meets_those_of_its_name_and_all_without_a_name() -> None:
    members: list[dict[str, Any]] = [
        {"properties": {"p": A, "q": B}, "additionalProperties": False},
        {"properties": {"p": B}, "patternProperties": {"x": C}, "additionalProperties": D},
        {"properties": "invalid"},
    ]
    assert list(property_groups(members)) == [[A, B, C, D], [B, C, D], [C, D]]


def test_an_item_meets_those_of_its_position_and_all_without_a_position() -> None:
    members: list[dict[str, Any]] = [
        {"prefixItems": [A, B], "items": C},
        {"items": [D], "additionalItems": False},
        {"items": True},
    ]
    assert list(item_groups(members)) == [[A, D, C], [B, C], [C]]
