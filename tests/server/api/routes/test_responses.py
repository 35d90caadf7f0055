"""POST /v1/responses."""

import asyncio
import json
from typing import Any

import pytest

from engine.types import RequestOutput
from server.api import chat_translation
from server.fairness.byte_budget import ByteBudget
from server.fairness.loop_turns import LoopTurns
from server.generation.state import ServerState
from server.schemas.responses_api.request import LOGPROBS
from tests.support.servers.fake_engine import FakeEngine, entry
from tests.support.servers.serving import MODEL, check_error, client_of, saying, state_around

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"model": MODEL, "input": "Hello", "metadata": {"a": "b"}}
SCORED: dict[str, Any] = {**BODY, "include": [LOGPROBS], "top_logprobs": 20}


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(event.split("\ndata: ")[1]) for event in text.strip().split("\n\n")]


class CountedTurns(LoopTurns):
    """Turns of the event loop that counts them."""

    count = 0

    async def next(self, tenant: int) -> None:
        self.count += 1
        await super().next(tenant)


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
    events = events_of(text)
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


async def scored_reply(state: ServerState, engine: FakeEngine, *, streamed: bool) -> str:
    """Return the body of a reply to SCORED, to which the engine answers 200 and then 2 tokens: 4200 values at once."""
    async with client_of(state) as client:
        reply = asyncio.ensure_future(client.post("/v1/responses", json={**SCORED, "stream": streamed}))
        await engine.until(lambda: bool(engine.submitted))
        (request,) = engine.submitted
        for ids, reason in ((range(500, 700), None), (range(700, 702), "length")):
            scores = [entry(token_id, 20) for token_id in ids]
            output = RequestOutput(request.request_id, list(ids), logprobs=scores, finish_reason=reason)  # type: ignore[arg-type]
            engine.collectors[request.request_id].put(output)
            for _ in range(20):
                await asyncio.sleep(0)  # the handler reads it
        return (await reply).text


@pytest.mark.parametrize("send_bytes", [1 << 10, chat_translation.SEND_BYTES])
async def test_many_log_probabilities_are_rendered_in_turns_and_each_event_that_repeats_them_has_them_all(
    send_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_translation, "SEND_BYTES", send_bytes)
    engine = FakeEngine(saying("a"), held=True)
    state = state_around(engine)
    state.turns = turns = CountedTurns()
    full = json.loads(await scored_reply(state, engine, streamed=False))
    assert turns.count >= 2
    part = full["output"][0]["content"][0]
    assert len(part["logprobs"]) == 202 and all(len(one["top_logprobs"]) == 20 for one in part["logprobs"])
    assert "".join(one["token"] for one in part["logprobs"]) == part["text"]

    engine = FakeEngine(saying("a"), held=True)
    events = events_of(await scored_reply(state_around(engine), engine, streamed=True))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    by_type = {event["type"]: event for event in events}
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert list(map(len, deltas)) == [200, 2] and [*deltas[0], *deltas[1]] == part["logprobs"]
    assert by_type["response.output_text.done"]["logprobs"] == part["logprobs"]
    assert by_type["response.content_part.done"]["part"] == part
    assert by_type["response.output_item.done"]["item"]["content"] == [part]
    assert by_type["response.incomplete"]["response"]["output"][0]["content"] == [part]


@pytest.mark.parametrize("streamed", [False, True])
async def test_log_probabilities_hold_memory_until_they_are_sent_and_are_refused_beyond_it(streamed: bool) -> None:
    engine = FakeEngine(saying("universally acknowledged"), held=True)
    state = state_around(engine)
    state.reply_memory = ByteBudget(30_000)
    async with client_of(state) as client:
        body = {**SCORED, "max_output_tokens": 10, "stream": streamed}  # 21,000 bytes
        first = asyncio.create_task(client.post("/v1/responses", json=body))
        await engine.until(lambda: bool(engine.submitted))
        assert state.reply_memory.used_bytes == 21_000
        check_error(await client.post("/v1/responses", json=body), 429, "reply_memory_full")
        while engine.step():
            pass
        assert (await first).status_code == 200
    assert state.reply_memory.used_bytes == 0
