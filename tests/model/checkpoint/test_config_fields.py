"""Typed access to JSON: values of the right type are returned, others are named with file and key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.errors import CheckpointError

FIELDS = JsonFields(
    Path("config.json"),
    {"one": 1, "half": 0.5, "yes": True, "nothing": None, "text": "1", "ids": [3, 1], "inner": {"one": 0}, "zero": 0},
)


def test_values_of_the_right_type_are_returned() -> None:
    assert FIELDS.positive("one", at_most=1) == 1
    assert (FIELDS.positive_float("one", at_most=1), FIELDS.positive_float("half", at_most=1)) == (1.0, 0.5)
    assert FIELDS.flag("yes") and not FIELDS.flag("nothing") and not FIELDS.flag("absent")
    assert (FIELDS.token_id("one", 2), FIELDS.token_ids("ids", 4), FIELDS.token_ids("absent", 4)) == (1, [3, 1], [])
    assert FIELDS.section("absent") is None and FIELDS.section("nothing") is None
    assert (FIELDS.get("half"), FIELDS.get("absent"), FIELDS.get("absent", 7)) == (0.5, None, 7)


READS: dict[str, Callable[[JsonFields], Any]] = {
    "one is 1, not an integer from 1 to 0": lambda f: f.positive("one", at_most=0),
    "zero is 0, not an integer": lambda f: f.positive("zero", at_most=9),
    "yes is True, not an integer": lambda f: f.positive("yes", at_most=9),
    "half is 0.5, not an integer": lambda f: f.positive("half", at_most=9),
    "absent is missing": lambda f: f.positive("absent", at_most=9),
    "text is '1', not a number above 0 and at most 2": lambda f: f.positive_float("text", at_most=2),
    "one is 1, not true or false": lambda f: f.flag("one"),
    "ids is \\[3, 1\\], not one token id": lambda f: f.token_id("ids", 4),
    "ids is .*, not token ids below vocab_size 3": lambda f: f.token_ids("ids", 3),
    "one is 1, not an object": lambda f: f.section("one"),
    "inner.one is 0, not an integer": lambda f: f.section("inner").positive("one", at_most=9),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("message", READS)
def test_a_wrong_value_is_named_with_file_and_key(message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config.json: {message}"):
        READS[message](FIELDS)
