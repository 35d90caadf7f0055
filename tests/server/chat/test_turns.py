"""server/chat/turns.py: ids of calls in Mistral's form, and tool results as JSON or text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chat.turns import ALPHANUMERICS, CALL_ID_CHARS, Call, Turn, mistral_id, short_id


@given(st.text())
def test_every_text_gives_one_id_of_nine_letters_and_digits(text: str) -> None:
    call_id = short_id(text)
    assert len(call_id) == CALL_ID_CHARS and set(call_id) <= set(ALPHANUMERICS)
    assert short_id(text) == call_id and mistral_id(call_id) == call_id


def test_different_ids_stay_different_and_only_mistrals_own_form_is_kept() -> None:
    assert mistral_id("abcDEF123") == "abcDEF123"
    mapped = {mistral_id(f"call_{i}") for i in range(1000)} | {mistral_id("abcDEF12"), mistral_id("abcDEF123\n")}
    assert len(mapped) == 1002


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", {}),
        ('{"a": [1, null]}', {"a": [1, None]}),
        ("2.50", 2.5),
        ("sunny", "sunny"),
        ("{not json", "{not json"),
        ('"\\ud800"', '"\\ud800"'),
        ("[" * 100, "[" * 100),
    ],
)
def test_a_result_is_json_where_it_can_be_and_else_its_text(text: str, content: object) -> None:
    assert Turn("tool", text, (), "abcdefghi").result() == {"content": content, "call_id": "abcdefghi"}


def test_a_call_has_its_keys_in_mistrals_order() -> None:
    call = Call("abcdefghi", "f", {"x": 1})
    assert json.dumps(call.as_mistral()) == '{"name": "f", "arguments": {"x": 1}, "id": "abcdefghi"}'
