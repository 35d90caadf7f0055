"""POST /v1/responses."""

import asyncio
import json
from typing import Any

import pytest

from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"model": MODEL, "input": "Hello", "metadata": {"a": "b"}}


async def test_a_reply_is_a_response_with_the_requests_own_fields() -> None:
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        reply = await client.post("/v1/responses", json=BODY, headers={"x-request-id": "mine"})
    response = reply.json()
    assert (response["id"], response["object"], response["status"]) == ("resp_mine", "response", "completed")
    [item] = response["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "fine")
    assert (response["usage"]["output_tokens"], response["metadata"]) == (2, {"a": "b"})


async def test_a_stream_ends_with_the_response_that_its_events_built() -> None:
    async with client_of(state_around(FakeEngine(saying("one two")))) as client:
        text = (await client.post("/v1/responses", json={**BODY, "stream": True})).text
    events = [json.loads(event.split("\ndata: ")[1]) for event in text.strip().split("\n\n")]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "".join(deltas) == "one two"


async def test_an_error_in_a_stream_is_its_last_event() -> None:
    engine = FakeEngine(saying("one two three"), held=True)
    async with client_of(state_around(engine)) as client:
        reply = asyncio.ensure_future(client.post("/v1/responses", json={**BODY, "stream": True}))
        await engine.until(lambda: bool(engine.submitted))
        engine.step()
        await asyncio.sleep(0)
        engine.fail("row")
        text = (await reply).text
    last = json.loads(text.strip().split("\n\n")[-1].split("\ndata: ")[1])
    assert (last["code"], last["error"]["code"]) == ("internal_error", "internal_error")
