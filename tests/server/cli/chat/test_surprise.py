"""server/cli/chat/surprise.py: tokens marked by their probability, with and without colours."""

import math
from typing import Any

from server.cli.chat.surprise import painted
from server.cli.colours import WITHOUT_COLOURS, Colours


def choice(*tokens: tuple[str, float]) -> dict[str, Any]:
    return {"logprobs": {"content": [{"token": token, "logprob": math.log(p)} for token, p in tokens]}}


def test_colours_mark_less_and_least_likely_tokens() -> None:
    text = painted(choice(("The", 0.9), (" cat", 0.3), (" sings", 0.03)), Colours(is_on=True))
    assert text == "The\x1b[33m cat\x1b[0m\x1b[1;31m sings\x1b[0m"


def test_without_colours_the_least_likely_tokens_have_their_probability() -> None:
    assert painted(choice(("The", 0.9), (" cat", 0.3), (" sings", 0.03)), WITHOUT_COLOURS) == "The cat sings{3%}"


def test_control_characters_of_the_text_are_shown_and_a_chunk_without_tokens_is_nothing() -> None:
    assert painted(choice(("a\x1b[2J", 0.9)), Colours(is_on=True)) == "a\\x1b[2J"
    assert painted({"delta": {"role": "assistant"}, "logprobs": None}, WITHOUT_COLOURS) == ""
