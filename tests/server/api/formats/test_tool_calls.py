"""server/api/formats/tool_calls.py: streamed calls against full ones, for every way to cut the text in two."""

from collections.abc import Mapping
from typing import Any

import pytest

from server.api.formats.tool_calls import ToolCallFormatter
from server.generation.choice import Delta

TEXT = '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'


def streamed(deltas: list[Delta]) -> tuple[list[dict[str, Any]], list[int], str | None]:
    """Return the calls that a client assembles, all token ids, and the finish reason."""
    formatter = ToolCallFormatter("id")
    calls: list[dict[str, Any]] = []
    ids: list[int] = []
    reason = None
    for delta in deltas:
        for piece, added in formatter.pieces(delta):
            ids += piece.token_ids
            reason = piece.finish_reason or reason
            assert "content" not in added
            add_calls(calls, added)
    return calls, ids, reason


def add_calls(calls: list[dict[str, Any]], added: Mapping[str, Any]) -> None:
    for part in added.get("tool_calls", ()):
        if "id" in part:
            function = {"name": part["function"]["name"], "arguments": ""}
            calls.append({"id": part["id"], "type": part["type"], "function": function})
        calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]


@pytest.mark.parametrize("cut", range(1, len(TEXT)))
def test_streamed_calls_equal_the_full_ones(cut: int) -> None:
    deltas = [Delta(0, TEXT[:cut], [1]), Delta(0, TEXT[cut:], [2, 3], finish_reason="stop")]
    calls, ids, reason = streamed(deltas)
    ended, message = ToolCallFormatter("id").full(Delta(0, TEXT, [1, 2, 3], finish_reason="stop"))
    assert calls == message["tool_calls"]
    assert (ids, reason, ended.finish_reason) == ([1, 2, 3], "tool_calls", "tool_calls")


def test_calls_that_a_limit_cut_off_keep_the_finish_reason() -> None:
    calls, _, reason = streamed([Delta(0, TEXT[:50], [1]), Delta(0, "", [2], finish_reason="length")])
    assert (len(calls), reason) == (1, "length")


def test_choices_have_different_call_ids() -> None:
    formatter = ToolCallFormatter("id")
    messages: list[Any] = [formatter.full(Delta(i, TEXT, finish_reason="stop"))[1] for i in range(3)]
    assert len({call["id"] for message in messages for call in message["tool_calls"]}) == 6
