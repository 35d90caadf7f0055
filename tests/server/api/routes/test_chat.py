"""POST /v1/chat/completions: the shape of full replies, and the order of chunks in streams."""

import threading
from typing import Any

import pytest

from server.api import chat_turn
from server.generation.prediction import PredictedTokens
from tests.support.servers.fake_engine import EOS, FakeEngine
from tests.support.servers.serving import MODEL, client_of, events, outcomes, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio
HELLO: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
GOLDEN_IDS = [1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793]
URL = "/v1/chat/completions"
ANSWER = "Hello, I am \U00010348 here."


async def full(engine: FakeEngine, **fields: object) -> dict[str, Any]:
    async with client_of(state_around(engine)) as client:
        response = await client.post(URL, json={**HELLO, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def stream(engine: FakeEngine, **fields: object) -> list[dict[str, Any]]:
    async with client_of(state_around(engine)) as client:
        response = await client.post(URL, json={**HELLO, "stream": True, **fields})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    return events(response.text)


async def test_a_stream_has_role_content_end_usage_in_this_order() -> None:
    chunks = await stream(FakeEngine(saying("a b")), stream_options={"include_usage": True})
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": " b"}, {}]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None, None, None, "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["seed"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_a_stream_without_options_has_no_usage() -> None:
    assert all("usage" not in chunk for chunk in await stream(FakeEngine(saying("a b"))))


async def test_continuous_usage_grows_with_the_tokens() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream(FakeEngine(saying("a b c")), stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4 and counts[0] == 0 < counts[1]  # the first chunk has the role and no token


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stop": "here"}, {"stop": ["I am"], "n": 2}, {"max_tokens": 5}])
async def test_a_streams_text_is_the_full_text(fields: dict[str, object]) -> None:
    chunks = await stream(FakeEngine(saying(ANSWER)), **fields)
    body = await full(FakeEngine(saying(ANSWER)), **fields)
    for choice in body["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["delta"].get("content", "") for chunk in mine) == choice["message"]["content"]
        ends = [(chunk["finish_reason"], chunk["stop_reason"]) for chunk in mine if chunk["finish_reason"]]
        assert ends == [(choice["finish_reason"], choice["stop_reason"])]


async def test_a_reply_has_usage_seed_and_fingerprint() -> None:
    engine = FakeEngine(saying("fine"))
    body = await full(engine, seed=7)
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert (choice["message"]["content"], choice["finish_reason"], choice["logprobs"]) == ("fine", "stop", None)
    assert (body["object"], body["model"], body["seed"]) == ("chat.completion", MODEL, 7)
    assert body["system_fingerprint"] == "fake-fingerprint"
    assert body["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert engine.submitted[0].prompt_token_ids == GOLDEN_IDS


async def test_a_drawn_seed_has_63_bits_and_reaches_the_engine() -> None:
    engine = FakeEngine(saying("fine"))
    seeds = {(await full(engine))["seed"] for _ in range(3)}
    assert seeds == {request.params.seed for request in engine.submitted}
    assert len(seeds) == 3 and all(0 <= seed < 2**63 for seed in seeds)


async def test_n_choices_are_n_requests_that_differ_only_in_their_index() -> None:
    engine = FakeEngine(saying("fine"))
    body = await full(engine, n=3)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [request.params.choice_index for request in engine.submitted] == [0, 1, 2]
    assert len({request.params.seed for request in engine.submitted}) == 1
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (9, 6)


async def test_without_a_limit_a_chat_may_fill_the_context() -> None:
    engine = FakeEngine(saying("fine"))
    await full(engine)
    assert engine.submitted[0].params.max_tokens == 256 - len(GOLDEN_IDS)


async def test_a_stop_string_is_cut_off_named_and_ends_the_engines_work() -> None:
    engine = FakeEngine(saying("one two three four"), held=False)
    body = await full(engine, stop=["three"])
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one two ", "stop")
    assert choice["stop_reason"] == "three"
    assert engine.aborted == {engine.submitted[0].request_id}
    assert body["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("streamed", [False, True])
async def test_each_token_has_its_logprobs(streamed: bool) -> None:
    fields: dict[str, object] = {"logprobs": True, "top_logprobs": 2}
    if streamed:
        chunks = await stream(FakeEngine(saying("a\U00010348")), **fields)
        logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        entries = [entry for each in logprobs if each for entry in each["content"]]
    else:
        body = await full(FakeEngine(saying("a\U00010348")), **fields)
        entries = body["choices"][0]["logprobs"]["content"]
    ids = [*tokenizer().encode("a\U00010348", add_special_tokens=False), EOS]
    assert "".join(entry["token"] for entry in entries) == "a\U00010348"
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == "a\U00010348".encode()
    assert len(entries) == len(ids)
    assert (entries[-1]["token"], entries[-1]["bytes"]) == ("", [])
    assert [entry["logprob"] for entry in entries] == [-0.5 - i % 7 for i in ids]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


async def test_token_ids_are_returned_on_request() -> None:
    ids = [*tokenizer().encode("a b", add_special_tokens=False), EOS]
    body = await full(FakeEngine(saying("a b")), return_token_ids=True)
    assert body["prompt_token_ids"] == GOLDEN_IDS
    assert body["choices"][0]["token_ids"] == ids
    chunks = await stream(FakeEngine(saying("a b")), return_token_ids=True)
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [GOLDEN_IDS] + [None] * (len(chunks) - 1)
    assert [i for chunk in chunks for i in chunk["choices"][0]["token_ids"]] == ids


async def test_a_continued_message_keeps_the_space_between_the_words() -> None:
    messages = [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "It is"}]
    fields = {"messages": messages, "continue_final_message": True}
    body = await full(FakeEngine(saying("here")), **fields)
    assert body["choices"][0]["message"]["content"] == " here"


async def test_unknown_fields_are_named_in_a_header() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        for streamed in (False, True):
            response = await client.post(URL, json={**HELLO, "temprature": 1, "stream": streamed})
            assert response.headers["x-smoe-ignored-params"] == "temprature"
            response = await client.post(URL, json={**HELLO, "stream": streamed})
            assert "x-smoe-ignored-params" not in response.headers


async def test_every_choice_is_accounted_for_once() -> None:
    state = state_around(FakeEngine(saying("one two three")))
    async with client_of(state) as client:
        await client.post(URL, json={**HELLO, "n": 2})
        await client.post(URL, json={**HELLO, "max_tokens": 1, "stream": True})
    assert outcomes(state) == {"received": 3, "stop": 2, "length": 1}


@pytest.mark.parametrize(
    "content", ["a b d", [{"type": "text", "text": "a b"}, {"type": "text", "text": " d"}]], ids=["text", "parts"]
)
async def test_a_prediction_reaches_the_engine_and_the_usage_counts_its_tokens(content: object) -> None:
    engine = FakeEngine(saying("a b c"))
    usage = (await full(engine, prediction={"type": "content", "content": content}, n=2))["usage"]
    ids = tokenizer().encode("a b d", add_special_tokens=False)
    first, second = (request.prediction_token_ids for request in engine.submitted)
    assert first == ids and second is first, "one list for all choices"
    right = len(tokenizer().encode("a b", add_special_tokens=False))
    assert usage["completion_tokens_details"] == {
        "accepted_prediction_tokens": 2 * right,
        "rejected_prediction_tokens": 2 * (len(ids) - right),
    }


async def test_the_places_in_a_prediction_are_found_once_for_all_choices_and_not_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_in: list[int] = []

    class Recorded(PredictedTokens):
        def __init__(self, token_ids: list[int]) -> None:
            made_in.append(threading.get_ident())
            super().__init__(token_ids)

    monkeypatch.setattr(chat_turn, "PredictedTokens", Recorded)
    engine = FakeEngine(saying("a b c"))
    await full(engine, prediction={"type": "content", "content": "a b d " * 700}, n=4)
    assert len(made_in) == 1 and made_in[0] != threading.get_ident()


async def test_tokens_behind_a_stop_string_count_for_no_prediction() -> None:
    engine = FakeEngine(saying("a b c"))
    body = await full(engine, prediction={"type": "content", "content": "a b c"}, stop=[" b"])
    assert body["usage"]["completion_tokens_details"]["rejected_prediction_tokens"] == 1


async def test_a_prediction_longer_than_any_reply_is_refused() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        fields = {"prediction": {"type": "content", "content": "a" * 1_000_000}}
        response = await client.post(URL, json={**HELLO, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prediction")
