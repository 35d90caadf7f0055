"""POST /v1/completions: all kinds of prompts, echo and scoring, logprobs as arrays."""

import asyncio
import itertools
from typing import Any

import pytest

from server.fairness.byte_budget import ByteBudget
from tests.support.servers.fake_engine import EOS, MAX_MODEL_LEN, FakeEngine
from tests.support.servers.serving import (
    MODEL,
    check_error,
    client_of,
    events,
    outcomes,
    saying,
    state_around,
    tokenizer,
)

pytestmark = pytest.mark.anyio

URL = "/v1/completions"
PROMPT = "It is a truth"
PROMPT_IDS = tokenizer().encode(PROMPT)


async def full(engine: FakeEngine, **fields: object) -> dict[str, Any]:
    async with client_of(state_around(engine)) as client:
        response = await client.post(URL, json={"model": MODEL, "prompt": PROMPT, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def stream(engine: FakeEngine, **fields: object) -> list[dict[str, Any]]:
    async with client_of(state_around(engine)) as client:
        response = await client.post(URL, json={"model": MODEL, "prompt": PROMPT, "stream": True, **fields})
    return events(response.text)


async def test_the_text_is_what_follows_the_prompt() -> None:
    engine = FakeEngine(saying("universally acknowledged"))
    body = await full(engine)
    (choice,) = body["choices"]
    assert choice["text"] == " universally acknowledged"
    assert (choice["finish_reason"], choice["logprobs"], body["object"]) == ("stop", None, "text_completion")
    assert engine.submitted[0].prompt_token_ids == PROMPT_IDS
    assert engine.submitted[0].params.max_tokens == 16


async def test_a_stream_has_text_then_its_end_and_no_role() -> None:
    chunks = await stream(FakeEngine(saying("a b")), stream_options={"include_usage": True})
    texts = [(chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) for chunk in chunks[:-1]]
    assert texts == [(" a", None), (" b", None), ("", "stop")]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == len(PROMPT_IDS) + 3


async def test_each_prompt_has_n_choices_in_order() -> None:
    engine = FakeEngine(lambda request: [request.prompt_token_ids[-1], EOS])
    body = await full(engine, prompt=[[1, 500], [1, 600]], n=2, return_token_ids=True)
    assert [choice["prompt_token_ids"] for choice in body["choices"]] == [[1, 500]] * 2 + [[1, 600]] * 2
    assert [choice["token_ids"][0] for choice in body["choices"]] == [500, 500, 600, 600]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    indices = [(request.params.prompt_index, request.params.choice_index) for request in engine.submitted]
    assert indices == list(itertools.product((0, 1), repeat=2))
    assert body["usage"]["prompt_tokens"] == 4 and body["usage"]["completion_tokens"] == 8
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


@pytest.mark.parametrize("prompt", [PROMPT, [PROMPT], PROMPT_IDS, [PROMPT_IDS]])
async def test_a_prompt_may_be_text_or_ids(prompt: object) -> None:
    engine = FakeEngine(saying("a"))
    assert (await full(engine, prompt=prompt, echo=True))["choices"][0]["text"] == f"{PROMPT} a"
    assert engine.submitted[0].prompt_token_ids == PROMPT_IDS


@pytest.mark.parametrize("streamed", [False, True])
async def test_echoed_logprobs_have_an_entry_for_each_prompt_and_generated_token(streamed: bool) -> None:
    """The request is that of lm-eval, with the fields that it reads."""
    ids = tokenizer().encode("The quick brown")
    fields: dict[str, Any] = {"prompt": [ids], "max_tokens": 1, "logprobs": 1, "echo": True}
    if streamed:
        chunks = await stream(FakeEngine(saying("fox")), **fields)
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
        logprobs = {key: [item for part in parts for item in part[key]] for key in parts[0]}
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    else:
        (choice,) = (await full(FakeEngine(saying("fox")), **fields))["choices"]
        logprobs, text = choice["logprobs"], choice["text"]
    generated = tokenizer().encode("fox", add_special_tokens=False)[:1]
    texts = [tokenizer().token_text(i) for i in [*ids, *generated]]
    assert logprobs["tokens"] == texts
    assert logprobs["token_logprobs"] == [None, *(-0.5 - i % 7 for i in [*ids[1:], *generated])]
    assert logprobs["top_logprobs"][0] is None
    for token, logprob, top in list(zip(texts, logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))[1:]:
        assert top[token] == logprob and len(top) == 2
    words = [text[start:end] for start, end in itertools.pairwise(logprobs["text_offset"])]
    assert words == ["", "The", *(tokenizer().token_text(i) for i in ids[2:])]
    assert text == "The quick brown" + texts[-1]


@pytest.mark.parametrize("streamed", [False, True])
async def test_scoring_returns_the_prompt_with_logprobs_and_generates_nothing(streamed: bool) -> None:
    fields: dict[str, Any] = {"max_tokens": 0, "logprobs": 0, "echo": True}
    engine = FakeEngine(saying("never said"))
    if streamed:
        chunks = await stream(engine, stream_options={"include_usage": True}, **fields)
        choice, usage = chunks[0]["choices"][0], chunks[-1]["usage"]
        assert chunks[1]["choices"][0]["finish_reason"] == "length"
    else:
        body = await full(engine, **fields)
        choice, usage = body["choices"][0], body["usage"]
        assert choice["finish_reason"] == "length"
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["tokens"]) == len(PROMPT_IDS)
    assert usage["completion_tokens"] == 0


async def test_logprobs_without_echo_are_of_the_generated_tokens() -> None:
    (choice,) = (await full(FakeEngine(saying("a b")), logprobs=0))["choices"]
    assert choice["logprobs"]["tokens"] == [" a", " b", "</s>"]
    assert choice["logprobs"]["text_offset"] == [0, 2, 4]
    assert all(
        list(top) == [token]
        for token, top in zip(choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"], strict=True)
    )


@pytest.mark.parametrize(
    ("num_prompt", "fields", "status"),
    [
        (MAX_MODEL_LEN - 1, {}, 200),
        (MAX_MODEL_LEN, {}, 400),
        (MAX_MODEL_LEN + 1, {}, 400),
        (MAX_MODEL_LEN - 4, {"max_tokens": 4}, 200),
        (MAX_MODEL_LEN - 4, {"max_tokens": 5}, 400),
        (MAX_MODEL_LEN, {"max_tokens": 0, "echo": True}, 200),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_request_that_does_not_fit_is_a_400_with_both_numbers(
    num_prompt: int, fields: dict[str, object], status: int, streamed: bool
) -> None:
    engine = FakeEngine(saying("a"))
    async with client_of(state_around(engine)) as client:
        body = {"model": MODEL, "prompt": [5] * num_prompt, "stream": streamed, **fields}
        response = await client.post(URL, json=body)
    assert response.status_code == status
    assert len(engine.submitted) == (status == 200)
    if status == 400:
        error = response.json()["error"]
        blamed = "max_tokens" if fields else "prompt"
        assert (error["code"], error["param"]) == ("context_length_exceeded", blamed)
        assert str(num_prompt) in error["message"] and str(MAX_MODEL_LEN) in error["message"]


async def test_a_text_that_can_never_fit_is_refused_without_tokenizing() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        response = await client.post(URL, json={"model": MODEL, "prompt": "a" * 500_000})
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("streamed", [False, True])
async def test_large_replies_hold_their_memory_until_they_are_sent_and_are_refused_beyond_it(streamed: bool) -> None:
    engine = FakeEngine(saying("universally acknowledged"), held=True)
    state = state_around(engine)
    state.reply_memory = ByteBudget(30_000)
    async with client_of(state) as client:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 10, "logprobs": 20, "stream": streamed}  # 21,000 bytes
        first = asyncio.create_task(client.post(URL, json=body))
        await engine.until(lambda: bool(engine.submitted))
        assert state.reply_memory.used_bytes == 21_000
        check_error(await client.post(URL, json=body), 429, "reply_memory_full")
        assert outcomes(state)["rejected"] == 1
        plain = asyncio.create_task(client.post(URL, json={**body, "logprobs": None}))
        await engine.until(lambda: len(engine.submitted) == 2)
        while engine.step():
            pass
        assert (await first).status_code == (await plain).status_code == 200
        assert state.reply_memory.used_bytes == 0
