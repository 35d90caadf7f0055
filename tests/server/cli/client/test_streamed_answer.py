"""Text and figures of a streamed answer."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from server.cli.client.streamed_answer import StreamedAnswer, read_answer

ANSWER = StreamedAnswer("ab", 15, 11, 0.5, 1.5, "stop", 7)


def chunk(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"finish_reason": finish_reason, **fields}]}


def test_pieces_are_written_as_they_come_and_make_the_text() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    chunks = [
        chunk(delta={"role": "assistant"}) | {"seed": 5},
        chunk(delta={"content": "a"}),
        chunk("stop", text="b"),
        {"choices": [], "usage": usage},
    ]
    pieces: list[str] = []
    answer = read_answer(chunks, pieces.append)
    assert (pieces, answer.text) == (["a", "b"], "ab")
    assert (answer.num_prompt_tokens, answer.num_tokens, answer.finish_reason, answer.seed) == (3, 2, "stop", 5)
    assert answer.first_token_s is not None and 0 <= answer.first_token_s <= answer.total_s


def test_ctrl_c_ends_the_answer_without_a_finish_reason() -> None:
    def interrupted() -> Iterator[dict[str, Any]]:
        yield chunk(text="a")
        raise KeyboardInterrupt

    answer = read_answer(interrupted(), lambda piece: None)
    assert (answer.text, answer.finish_reason) == ("a", None)


def test_the_figures_are_one_line() -> None:
    assert ANSWER.figures == "15 + 11 tokens, first after 500 ms, 10 tokens/s, stop, seed 7"
    assert (
        replace(ANSWER, finish_reason=None, num_tokens=1).figures
        == "15 + 1 tokens, first after 500 ms, stopped, seed 7"
    )
    assert replace(ANSWER, first_token_s=None).figures == "no tokens"
