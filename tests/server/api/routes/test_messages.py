"""POST /v1/messages and POST /v1/messages/count_tokens."""

import json
from typing import Any

import pytest

from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9}


async def test_a_reply_is_a_message_with_usage_and_the_request_id() -> None:
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        reply = await client.post("/v1/messages", json=BODY, headers={"x-request-id": "mine"})
    message = reply.json()
    assert (message["id"], message["type"], message["role"]) == ("msg_mine", "message", "assistant")
    assert message["content"] == [{"type": "text", "text": "fine"}]
    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("end_turn", 2)
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == 9


async def test_a_stream_has_named_events_and_the_text_of_the_full_reply() -> None:
    async with client_of(state_around(FakeEngine(saying("one two")))) as client:
        text = (await client.post("/v1/messages", json={**BODY, "stream": True})).text
    events = [event.split("\n") for event in text.strip().split("\n\n")]
    payloads = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [name.removeprefix("event: ") for name, _ in events] == [payload["type"] for payload in payloads]
    deltas = [payload["delta"]["text"] for payload in payloads if payload["type"] == "content_block_delta"]
    assert "".join(deltas) == "one two"
    assert payloads[-1]["type"] == "message_stop"


async def test_count_tokens_counts_the_prompt_of_the_message() -> None:
    engine = FakeEngine(saying("fine"))
    async with client_of(state_around(engine)) as client:
        await client.post("/v1/messages", json=BODY)
        counted = await client.post("/v1/messages/count_tokens", json={k: BODY[k] for k in ("model", "messages")})
    assert counted.json() == {"input_tokens": len(engine.submitted[0].prompt_token_ids)}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_continued_turn_with_tools_is_refused_by_a_field_of_the_request(path: str) -> None:
    turns = [*BODY["messages"], {"role": "assistant", "content": "Well,"}]
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        reply = await client.post(path, json={**BODY, "messages": turns, "tools": tools})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("'tools' cannot be called where the last message is continued")
