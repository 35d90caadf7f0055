"""server/api/formats/tool_calls.py: tool calls in replies and streams, as OpenAI's clients put them together."""

import json
from typing import Any, cast

import pytest

from server.api.formats.tool_calls import PIECE_CHARS, ToolCallFormatter
from server.generation.choice import Delta
from server.tools import call_parser
from server.tools.call_parser import CallPart
from tests.support.tool_calling import CLOCK_CALL, NAMED, ONE, PARIS, TWO, answered

pytestmark = pytest.mark.anyio


def merge_chunks(chunks: list[dict[str, Any]], index: int = 0) -> tuple[str, list[dict[str, Any]], str]:
    """Put the content, calls and finish reason of a choice together, as clients do."""
    content, calls, reason = "", [], ""
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        content += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for part in choice["delta"].get("tool_calls", []):
            if part["index"] == len(calls):
                assert part.keys() == {"index", "id", "type", "function"}
                assert part["function"].keys() == {"name", "arguments"} and part["function"]["arguments"] == ""
                calls.append({"id": part["id"], "type": part["type"], "function": dict(part["function"])})
            else:
                assert part.keys() == {"index", "function"} and part["index"] == len(calls) - 1
                assert part["function"].keys() == {"arguments"}
                calls[-1]["function"]["arguments"] += part["function"]["arguments"]
    return content, calls, reason


@pytest.mark.parametrize(("text", "names"), [(ONE, ["weather"]), (TWO, ["weather", "clock"])])
async def test_a_reply_and_a_stream_have_the_same_calls(text: str, names: list[str]) -> None:
    body, chunks, _ = await answered(text)
    (choice,) = body["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == names
    assert json.loads(calls[0]["function"]["arguments"]) == PARIS
    assert all(call["type"] == "function" and len(call["id"]) == 9 and call["id"].isalnum() for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    content, streamed, reason = merge_chunks(chunks)
    assert (content, reason) == ("", "tool_calls")
    assert [call["function"] for call in streamed] == [call["function"] for call in calls]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}


def test_each_part_of_a_reply_is_looked_at_once_however_many_calls_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Watched(CallPart):
        def __getattribute__(self, name: str) -> Any:
            read.append(name)
            return super().__getattribute__(name)

    monkeypatch.setattr(call_parser, "CallPart", Watched)
    arguments = [json.dumps({"city": "x" * number}) for number in range(200)]
    calls = ", ".join(f'{{"name": "f{number}", "arguments": {text}}}' for number, text in enumerate(arguments))
    _, message = ToolCallFormatter("id").full(Delta(0, text=f"[TOOL_CALLS] [{calls}]", finish_reason="stop"))
    functions = [call["function"] for call in cast(list[dict[str, Any]], message["tool_calls"])]
    assert functions == [{"name": f"f{number}", "arguments": text} for number, text in enumerate(arguments)]
    assert len(calls) > 4 * PIECE_CHARS and read.count("index") < 2.1 * len(arguments)


@pytest.mark.parametrize("choice", ["required", NAMED])
async def test_a_stream_that_must_call_begins_without_text(choice: object) -> None:
    """As in OpenAI's API; clients that reject an empty text accept it."""
    _, chunks, _ = await answered(CLOCK_CALL, tool_choice=choice)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": None}
    assert not any("content" in delta for delta in deltas[1:])


async def test_an_answer_without_calls_is_as_without_tools() -> None:
    body, chunks, _ = await answered("It is [fine] there.")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "It is [fine] there.", "refusal": None}
    assert merge_chunks(chunks) == ("It is [fine] there.", [], "stop")


async def test_calls_cut_off_by_a_limit_end_with_length() -> None:
    body, chunks, _ = await answered(ONE, max_tokens=24)
    assert body["choices"][0]["finish_reason"] == "length" == merge_chunks(chunks)[2]
    arguments = body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert json.dumps(PARIS).startswith(arguments) and merge_chunks(chunks)[1][0]["function"]["arguments"] == arguments


async def test_every_choice_has_calls_and_ids_of_its_own() -> None:
    body, chunks, _ = await answered(ONE, n=3)
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in body["choices"]]
    assert len(set(ids)) == 3
    assert all(merge_chunks(chunks, index)[1][0]["function"]["name"] == "weather" for index in range(3))


async def test_no_token_id_or_logprob_is_lost_beside_calls() -> None:
    body, chunks, _ = await answered(TWO, return_token_ids=True, logprobs=True)
    (choice,) = body["choices"]
    streamed = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [i for choice in streamed for i in choice["token_ids"]] == choice["token_ids"]
    entries = [entry for one in streamed if one["logprobs"] for entry in one["logprobs"]["content"]]
    assert entries == choice["logprobs"]["content"] and len(entries) == len(choice["token_ids"])


async def test_the_routing_of_no_token_is_lost_beside_calls() -> None:
    body, chunks, _ = await answered(TWO, expert_routing=True)
    (choice,) = body["choices"]
    streamed = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [layers for one in streamed for layers in one["expert_routing"]] == choice["expert_routing"]
    assert len(choice["expert_routing"]) == body["usage"]["completion_tokens"] - 1
