"""server/cli/chat/sampling.py: /set changes the fields of the next requests."""

import pytest

from server.cli.chat.sampling import described, with_setting


def test_a_value_is_set_replaced_and_forgotten() -> None:
    fields = with_setting({"seed": 1}, "temperature 0.5")
    assert fields == {"seed": 1, "temperature": 0.5}
    fields = with_setting(fields, "max-tokens 7")
    assert with_setting(fields, "temperature 0") == {"seed": 1, "temperature": 0.0, "max_tokens": 7}
    assert with_setting(fields, "temperature") == {"seed": 1, "max_tokens": 7}
    assert described(fields) == "temperature 0.5, max_tokens 7, seed 1"
    assert described({}) == "all settings are the server's"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("colour red", "one of: temperature"),
        ("seed many", "a whole number"),
        ("temperature hot", "a number"),
        ("temperature 9", "temperature should be at most 2"),
        ("temperature -1", "at least 0"),
        ("top_p 0", "more than 0"),
        ("max_tokens 0", "max_tokens should be at least 1"),
        ("experts_per_token 0", "at least 1"),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_way_out(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=part) as caught:
        with_setting({}, text)
    assert "\n" not in str(caught.value)
