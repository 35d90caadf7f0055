"""POST /v1/embeddings: inputs and formats, limits, long lists of inputs, errors."""

import asyncio
import base64
import random
import struct
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from engine.types import Request
from server.engine_client.output_collector import OutputCollector
from server.fairness.byte_budget import ByteBudget
from server.fairness.event_loop import INLINE_CHARS
from server.generation import embedding
from server.generation.embedding import IDS_PER_CHAR, MAX_PART
from tests.support.embedding_requests import EMBEDDING_MODEL, IDS, TEXT, embedding_engine, post, vector_of
from tests.support.servers.fake_engine import MAX_MODEL_LEN, READY, VOCAB_SIZE, FakeEngine
from tests.support.servers.serving import MODEL, check_error, client_of, outcomes, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

URL = "/v1/embeddings"


async def embed(engine: FakeEngine, value: object, **fields: object) -> dict[str, Any]:
    response = await post(engine, URL, input=value, **fields)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("value", [TEXT, [TEXT], IDS, [IDS]])
async def test_an_input_may_be_text_or_ids(value: object) -> None:
    engine = embedding_engine()
    body = await embed(engine, value)
    assert body["data"] == [{"object": "embedding", "index": 0, "embedding": vector_of(IDS)}]
    assert (body["object"], body["model"]) == ("list", MODEL)
    [request] = engine.submitted
    assert (request.prompt_token_ids, request.embedding_len, request.params.max_tokens) == (IDS, 8, 0)


async def test_usage_counts_all_inputs() -> None:
    usage = (await embed(embedding_engine(), [[5, 6, 7], [8]]))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 0, 4)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


async def test_base64_has_the_numbers_as_little_endian_float32() -> None:
    [entry] = (await embed(embedding_engine(), [5, 6], encoding_format="base64"))["data"]
    assert struct.unpack("<8f", base64.b64decode(entry["embedding"])) == tuple(vector_of([5, 6]))


async def test_dimensions_reach_the_engine() -> None:
    engine = embedding_engine()
    [entry] = (await embed(engine, [5, 6], dimensions=3))["data"]
    assert engine.submitted[0].embedding_len == 3 and entry["embedding"] == vector_of([5, 6], 3)


async def test_a_list_longer_than_the_queue_is_embedded_in_parts_and_in_order() -> None:
    """LangChain sends 1,000 texts at once. The queue has room for 20 choices."""
    engine = embedding_engine(held=True)
    values = [[5, number] for number in range(3, 53)]
    reply = asyncio.create_task(embed_with_queue(engine, values, 20))
    for num_submitted in (20, 40, 50):
        await submitted(engine, num_submitted, reply)
        assert len(engine.submitted) == num_submitted
        engine.step()
    body = await reply
    assert [entry["embedding"] for entry in body["data"]] == [vector_of(value) for value in values]
    assert [entry["index"] for entry in body["data"]] == list(range(50))
    assert body["usage"]["prompt_tokens"] == 100


async def submitted(engine: FakeEngine, count: int, reply: "asyncio.Task[dict[str, Any]]") -> None:
    """Wait until the engine has so many requests; fail if the reply comes first."""
    waiter = asyncio.create_task(engine.until(lambda: len(engine.submitted) >= count))
    await asyncio.wait({reply, waiter}, return_when=asyncio.FIRST_COMPLETED)
    assert waiter.done(), reply.result()


async def embed_with_queue(engine: FakeEngine, values: list[list[int]], max_num_queued: int) -> dict[str, Any]:
    response = await post(engine, URL, max_num_queued, input=values)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


class BoundedEngine(FakeEngine):
    """An engine in which requests wait until `finish`, and which keeps the largest number that waited."""

    def __init__(self) -> None:
        super().__init__(saying("text"), held=True)
        self.ready = EMBEDDING_MODEL
        self.most_waiting = 0

    def submit(self, requests: Sequence[Request]) -> OutputCollector:
        self.num_waiting += len(requests)
        self.most_waiting = max(self.most_waiting, self.num_waiting)
        return super().submit(requests)

    def finish(self, count: int) -> None:
        """End so many requests, the oldest first."""
        for collector, outputs in self._plays[:count]:
            collector.put(next(outputs))
            self.num_waiting -= 1
        del self._plays[:count]


async def test_lists_in_parallel_never_exceed_the_queue() -> None:
    """Two lists of 200 texts fill the queue; other requests come and go between their parts."""
    engine, rng, num_others = BoundedEngine(), random.Random(5), 0
    values = [[5, number] for number in range(3, 203)]
    state = state_around(engine, max_num_queued=2 * MAX_PART)
    async with client_of(state) as client:
        replies = asyncio.gather(*(client.post(URL, json={"input": values}) for _ in range(2)))
        await engine.until(lambda: len(engine.submitted) == 2 * MAX_PART)
        while not replies.done():
            engine.finish(rng.choice((0, 1, 30)))
            while state.admission.has_room(0, 8) and rng.random() < 0.7:
                num_others += 1
                engine.num_waiting += 8
            if num_others and rng.random() < 0.2:
                num_others -= 1
                engine.num_waiting -= 8
                state.admission.remove(0)
            engine.most_waiting = max(engine.most_waiting, engine.num_waiting)
            await asyncio.sleep(0)
    assert engine.most_waiting == 2 * MAX_PART
    for response in replies.result():
        assert [entry["embedding"] for entry in response.json()["data"]] == [vector_of(value) for value in values]


@pytest.mark.parametrize(
    ("field", "status", "code"),
    [("timeout_s", 504, "deadline_exceeded"), ("queue_timeout_s", 503, "queue_timeout")],
)
async def test_a_part_that_waits_for_places_ends_at_the_requests_deadline(field: str, status: int, code: str) -> None:
    engine = embedding_engine(held=True)
    reply = asyncio.create_task(post(engine, URL, input=[[5, 6]] * (MAX_PART + 1), **{field: 0.01}))
    await engine.until(lambda: len(engine.submitted) == MAX_PART)
    engine.num_waiting = 2000
    engine.step()
    response = await reply
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert len(engine.submitted) == MAX_PART


async def test_a_full_queue_refuses_a_list() -> None:
    engine = embedding_engine()
    engine.num_waiting = 1024
    check_error(await post(engine, URL, input=[[5]]), 429, "queue_full")


async def test_a_text_that_is_too_long_is_refused_or_truncated() -> None:
    engine = embedding_engine()
    text = "truth " * MAX_MODEL_LEN
    check_error(await post(engine, URL, input=[TEXT, text]), 400, "context_length_exceeded", "input")
    check_error(await post(engine, URL, input=[5] * (MAX_MODEL_LEN + 1)), 400, "context_length_exceeded", "input")
    assert not engine.submitted
    await embed(engine, text, truncate_prompt_tokens=-1)
    await embed(engine, text, truncate_prompt_tokens=4)
    await embed(engine, list(range(3, 13)), truncate_prompt_tokens=4)
    ids = tokenizer().encode(text)
    given = [request.prompt_token_ids for request in engine.submitted]
    assert given == [ids[:MAX_MODEL_LEN], ids[:4], [3, 4, 5, 6]]


async def test_a_prompt_may_fill_the_whole_context() -> None:
    await embed(embedding_engine(), [5] * MAX_MODEL_LEN)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "missing_required_parameter", "input"),
    ({"input": ""}, "empty_string", "input"),
    ({"input": []}, "empty_array", "input"),
    ({"input": ["a", ""]}, "empty_string", "input"),
    ({"input": [[5], []]}, "empty_array", "input"),
    ({"input": 5}, "invalid_type", "input"),
    ({"input": ["a", 5]}, "invalid_type", "input"),
    ({"input": ["a"] * 2049}, "array_above_max_length", "input"),
    ({"input": [VOCAB_SIZE]}, "integer_above_max_value", "input"),
    ({"input": [-1]}, "integer_below_min_value", "input"),
    ({"input": "a", "dimensions": 9}, "integer_above_max_value", "dimensions"),
    ({"input": "a", "dimensions": 0}, "integer_below_min_value", "dimensions"),
    ({"input": "a", "dimensions": "8"}, "invalid_type", "dimensions"),
    ({"input": "a", "encoding_format": "bytes"}, "invalid_value", "encoding_format"),
    ({"input": "a", "truncate_prompt_tokens": 0}, "integer_below_min_value", "truncate_prompt_tokens"),
    ({"input": "a", "truncate_prompt_tokens": -2}, "integer_below_min_value", "truncate_prompt_tokens"),
    ({"input": "a", "normalize": False}, "unsupported_parameter", "normalize"),
    ({"input": "a", "output_dimension": 4}, "unsupported_parameter", "output_dimension"),
    ({"messages": [{"role": "user", "content": "a"}]}, "unsupported_parameter", "messages"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD)
async def test_a_bad_request_gets_one_clear_error(fields: dict[str, Any], code: str, param: str) -> None:
    engine = embedding_engine()
    response = await post(engine, URL, **fields)
    check_error(response, 400, code, param)
    assert "\n" not in response.json()["error"]["message"] and not engine.submitted


async def test_a_generation_model_embeds_only_if_the_operator_chose_it() -> None:
    engine = embedding_engine()
    engine.ready = READY
    response = await post(engine, URL, input="a")
    check_error(response, 400, "embeddings_not_supported", "model")
    assert "--embeddings" in response.json()["error"]["message"]
    state = state_around(engine)
    state.embeddings = True
    async with client_of(state) as client:
        assert (await client.post(URL, json={"input": "a"})).status_code == 200


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}),
    ],
)
async def test_an_embedding_model_generates_nothing(url: str, fields: dict[str, Any]) -> None:
    engine = embedding_engine()
    response = await post(engine, url, **fields)
    assert response.status_code == 400 and "/v1/embeddings" in response.json()["error"]["message"]
    assert not engine.submitted


@pytest.mark.parametrize(("ready", "generates", "embeds"), [(EMBEDDING_MODEL, False, True), (READY, True, False)])
async def test_the_list_of_models_says_what_the_model_does(ready: Any, generates: bool, embeds: bool) -> None:
    engine = embedding_engine()
    engine.ready = ready
    async with client_of(state_around(engine)) as client:
        capabilities = (await client.get("/v1/models")).json()["data"][0]["capabilities"]
    assert (capabilities["completion_chat"], capabilities["embeddings"]) == (generates, embeds)


async def test_replies_beyond_their_memory_are_refused() -> None:
    engine = embedding_engine(held=True)
    state = state_around(engine)
    state.reply_memory = ByteBudget(100 * 8 * 24)
    async with client_of(state) as client:
        first = asyncio.create_task(client.post(URL, json={"input": [[5]] * 64}))
        await engine.until(lambda: len(engine.submitted) == 64)
        check_error(await client.post(URL, json={"input": [[5]] * 64}), 429, "reply_memory_full")
        assert outcomes(state)["rejected"] == 64
        engine.step()
        assert (await first).status_code == 200
    assert state.reply_memory.used_bytes == 0


async def test_each_input_is_accounted_for() -> None:
    engine = embedding_engine()
    state = state_around(engine)
    async with client_of(state) as client:
        await client.post(URL, json={"input": [[5], [6, 7]]})
    counts = outcomes(state)
    assert counts["received"] == 2 and counts["stop"] == 2


async def test_an_engine_that_dies_is_an_error() -> None:
    engine = embedding_engine(held=True)
    reply = asyncio.create_task(post(engine, URL, input=[5]))
    await engine.until(lambda: bool(engine.submitted))
    engine.collectors[engine.submitted[0].request_id].fail("gone")
    assert (await reply).status_code == 503


async def test_deadlines_and_priority_reach_the_engine() -> None:
    engine = embedding_engine()
    await embed(engine, [5], priority=3, timeout_s=9.0, queue_timeout_s=4.0, cache_salt="s")
    [request] = engine.submitted
    assert (request.priority, request.cache_salt) == (3, "s")
    assert request.deadline_s == pytest.approx(request.arrival_s + 9)
    assert request.queue_deadline_s == pytest.approx(request.arrival_s + 4)


async def test_many_ids_are_checked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    check = embedding.check_ids

    def noted(*arguments: Any) -> None:
        threads.append(threading.get_ident())
        check(*arguments)

    monkeypatch.setattr(embedding, "check_ids", noted)
    most = IDS_PER_CHAR * INLINE_CHARS
    for num_ids, status in ((3, 200), (most, 400), (most + IDS_PER_CHAR, 400)):
        response = await post(embedding_engine(), URL, input=[5] * num_ids)
        assert response.status_code == status
    own = threading.get_ident()
    assert [thread == own for thread in threads] == [True, True, False]
