"""server/api/formats/chat.py: the chunks of deltas, and full choices."""

from typing import Any

from server.api.formats.chat import ChatFormat
from server.api.formats.tool_calls import ToolCallFormatter
from server.generation.choice import Delta
from server.generation.prompt import Prompt
from server.schemas import ChatCompletionRequest
from tests.support.requests import CHAT
from tests.support.servers.serving import tokenizer


def a_format(**fields: object) -> ChatFormat:
    request = ChatCompletionRequest.model_validate(CHAT | fields)
    return ChatFormat(request, Prompt([1, 2], is_continued=False), tokenizer())


def chunks_of(delta: Delta, **fields: object) -> list[tuple[Any, Any]]:
    return [(dict(choice), dict(extra)) for choice, extra in a_format(**fields).chunks(delta)]


def test_role_text_and_finish_reason_are_three_chunks() -> None:
    chunks = chunks_of(Delta(0, text="hi", is_first=True, finish_reason="stop"))
    assert [choice["delta"] for choice, _ in chunks] == [{"role": "assistant", "content": ""}, {"content": "hi"}, {}]
    assert [choice["finish_reason"] for choice, _ in chunks] == [None, None, "stop"]


def test_the_prompts_ids_are_in_the_first_chunk_of_the_reply_only() -> None:
    reply_format = a_format(return_token_ids=True)
    first, second = (reply_format.chunks(Delta(index, is_first=True)) for index in (0, 1))
    assert [dict(extra) for _, extra in [*first, *second]] == [{"prompt_token_ids": [1, 2]}, {}]


def test_a_delta_without_text_or_end_makes_no_chunk() -> None:
    assert chunks_of(Delta(0, token_ids=[5])) == []


def test_a_full_choice_has_null_for_what_was_not_requested() -> None:
    choice = a_format().full(Delta(1, text="hi", token_ids=[5], finish_reason="length"))
    message = {"role": "assistant", "content": "hi", "refusal": None}
    assert choice == {
        "index": 1,
        "message": message,
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
    }


def test_tool_calls_are_parsed_out_of_the_text() -> None:
    request = ChatCompletionRequest.model_validate(CHAT)
    reply_format = ChatFormat(request, Prompt([1], is_continued=False), tokenizer(), ToolCallFormatter("id"))
    assert not reply_format.text_only_stream
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {}}]'
    choice: Any = reply_format.full(Delta(0, text=text, finish_reason="stop"))
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
