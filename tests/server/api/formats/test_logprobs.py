"""server/api/formats/logprobs.py: both formats, with token texts from a table."""

import math
from collections.abc import Iterable
from dataclasses import replace

from engine.types import TokenLogprobs
from server.api.formats.logprobs import MIN_LOGPROB, chat_logprobs, completion_logprobs
from server.generation.choice import Position

NAMES = {1: "a", 2: "b", 3: "a"}  # two tokens with the same text


class Table:
    """Texts and bytes of the tokens in NAMES."""

    def token_bytes(self, token_id: int) -> bytes:
        return NAMES[token_id].encode()

    def shown_texts(self, token_ids: Iterable[int]) -> list[str]:
        return [NAMES[token_id] for token_id in token_ids]

    def byte_values(self, token_ids: Iterable[int]) -> list[list[int]]:
        return [list(NAMES[token_id].encode()) for token_id in token_ids]


POSITIONS = [
    Position(1, 0, None),
    Position(2, 1, TokenLogprobs(2, -3.0, [1, 3], [-0.5, -1.0])),
    Position(3, 2, TokenLogprobs(3, -math.inf, [2], [-0.1])),
]


def test_arrays_have_an_entry_per_token_and_null_for_the_first_prompt_token() -> None:
    assert completion_logprobs(POSITIONS, Table()) == {
        "tokens": ["a", "b", "a"],
        "token_logprobs": [None, -3.0, MIN_LOGPROB],
        "top_logprobs": [None, {"a": -0.5, "b": -3.0}, {"b": -0.1, "a": MIN_LOGPROB}],
        "text_offset": [0, 1, 2],
    }


def test_chat_entries_keep_tokens_with_the_same_text_apart() -> None:
    (entry, last) = chat_logprobs([replace(position, text="b") for position in POSITIONS[1:]], Table())["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("b", -3.0, [98])
    assert [(top["token"], top["logprob"]) for top in entry["top_logprobs"]] == [("a", -0.5), ("a", -1.0)]
    assert last["logprob"] == MIN_LOGPROB


def test_the_likelier_of_two_tokens_with_one_text_counts_and_infinities_become_numbers() -> None:
    entry = TokenLogprobs(1, -0.5, [3, 1, 2], [-0.25, -0.5, -math.inf])
    [by_text] = completion_logprobs([Position(1, 0, entry)], Table())["top_logprobs"]
    assert by_text is not None and list(by_text.items()) == [("a", -0.25), ("b", MIN_LOGPROB)]
    [chat] = chat_logprobs([Position(1, 0, entry, "a")], Table())["content"]
    assert [top["logprob"] for top in chat["top_logprobs"]] == [-0.25, -0.5, MIN_LOGPROB]
