"""A full queue: requests are rejected with 429, and finished ones leave the queue in every case."""

import asyncio
import contextlib
import json
from typing import Any

import httpx
import pytest

from server.fairness.refusal_pace import FREE_PER_S, RefusalPace
from server.tokenizer.detokenizer import Detokenizer
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, app_around, client_of, outcomes, saying, state_around

pytestmark = pytest.mark.anyio


QUESTION = [{"role": "user", "content": "Who?"}]
COMPLETION = {"model": MODEL, "prompt": [5] * 100, "max_tokens": 4}


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert 0 < int(response.headers["retry-after"]) <= 120


@contextlib.asynccontextmanager
async def waiting_requests(client: httpx.AsyncClient, engine: FakeEngine, count: int, **fields: object) -> Any:
    """Send `count` requests and yield once the engine has them all; answer them at the end of the block."""
    tasks = [asyncio.create_task(client.post("/v1/completions", json={**COMPLETION, **fields})) for _ in range(count)]
    await engine.until(lambda: len(engine.submitted) == count * int(str(fields.get("n", 1))))
    yield tasks
    while not all(task.done() for task in tasks):
        engine.step()
        await asyncio.sleep(0)


async def test_waiting_prompts_are_limited_by_their_tokens() -> None:
    engine = FakeEngine(saying("a"), held=True)
    state = state_around(engine)
    state.max_num_queued_tokens = 250
    async with client_of(state) as client:
        async with waiting_requests(
            client, engine, 3
        ) as tasks:  # the third was accepted because 200 tokens were below the limit
            assert state.admission.num_tokens == 300
            refused(await client.post("/v1/completions", json=COMPLETION), 429, "queue_full")
        assert [task.result().status_code for task in tasks] == [200] * 3
        assert state.admission.num_tokens == 0
    assert outcomes(state) == {"received": 4, "stop": 3, "rejected": 1}


async def test_a_prompt_leaves_the_queue_with_its_first_token() -> None:
    engine = FakeEngine(saying("one two three"), held=True)
    state = state_around(engine)
    state.max_num_queued_tokens = 150
    async with client_of(state) as client, waiting_requests(client, engine, 2) as running:
        engine.step()
        for _ in range(20):  # iterations of the loop, until the handlers have the outputs
            await asyncio.sleep(0)
        assert state.admission.num_tokens == 0 and not running[0].done()
        late = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        await engine.until(lambda: len(engine.submitted) == 3)
        running.append(late)


async def test_a_prompt_longer_than_the_limit_is_accepted_while_the_queue_is_empty() -> None:
    state = state_around(FakeEngine(saying("a")))
    state.max_num_queued_tokens = 10
    async with client_of(state) as client:
        assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200


@pytest.mark.parametrize("how", ["cancelled", "died"])
async def test_requests_that_end_without_an_output_leave_the_queue(how: str) -> None:
    engine = FakeEngine(saying("a"), held=True)
    state = state_around(engine)
    async with client_of(state) as client:
        task = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        await engine.until(lambda: bool(engine.submitted))
        assert state.admission.num_tokens == 100
        if how == "died":
            engine.fail("died")
        else:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert state.admission.num_tokens == 0


async def test_the_key_of_a_request_is_its_tenant() -> None:
    engine = FakeEngine(saying("a"))
    state = state_around(engine)
    transport = httpx.ASGITransport(app_around(state, api_keys=("one", "two")))
    async with httpx.AsyncClient(transport=transport, base_url="http://smoe") as client:
        for key in ("two", "one"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.post("/v1/completions", json=COMPLETION, headers=headers)).status_code == 200
    async with client_of(state) as client:
        assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200
    assert [request.tenant for request in engine.submitted] == [1, 0, 0]


@pytest.mark.parametrize(
    "path",
    ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"],
)
async def test_with_a_full_queue_a_request_is_rejected_before_its_body_is_parsed(path: str) -> None:
    engine = FakeEngine(saying("a"))
    engine.num_waiting = 4
    state = state_around(engine, max_num_queued=4)
    async with client_of(state) as client:
        response = await client.post(path, content=b"{ no JSON", headers={"content-type": "application/json"})
        assert response.status_code == 429 and 0 < int(response.headers["retry-after"]) <= 120
        assert (await client.post("/tokenize", json={"model": MODEL, "prompt": "a"})).status_code == 200
    assert outcomes(state) == {"received": 1, "rejected": 1}


async def test_a_key_whose_share_is_full_is_refused_before_its_body_is_parsed_and_the_other_is_served() -> None:
    engine = FakeEngine(saying("a"))
    state = state_around(engine, max_num_queued=8)
    state.num_tenants = 2
    for number in range(7):  # of 8: the share of one key
        state.admission.add(1000 + number, tenant=0, num_tokens=1)
    transport = httpx.ASGITransport(app_around(state, api_keys=("one", "two")))
    async with httpx.AsyncClient(transport=transport, base_url="http://smoe") as client:

        async def post(key: str, body: bytes) -> httpx.Response:
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            return await client.post("/v1/completions", content=body, headers=headers)

        refused(await post("one", b"{ no JSON"), 429, "queue_full")
        assert (await post("two", b"{ no JSON")).status_code == 400
        assert (await post("two", json.dumps(COMPLETION).encode())).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_choices_without_a_place_are_refused_before_their_texts_and_jobs_are_made(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three choices for two places: no id is drawn and no echo decoded. One line is logged, three choices counted."""
    engine = FakeEngine(saying("a"))
    engine.num_waiting = 2
    state = state_around(engine, max_num_queued=4)
    monkeypatch.setattr(engine, "new_request_id", lambda: pytest.fail("a job was built"))
    monkeypatch.setattr(Detokenizer, "push", lambda *_: pytest.fail("an echo was decoded"))
    body = {**COMPLETION, "echo": True} if path == "/v1/completions" else {"model": MODEL, "messages": QUESTION}
    async with client_of(state) as client:
        with caplog.at_level("INFO", "smoe.access"):
            refused(await client.post(path, json={**body, "n": 3}), 429, "queue_full")
    assert outcomes(state) == {"received": 3, "rejected": 3}
    assert len(caplog.records) == 1


async def test_refusals_of_a_key_that_does_not_wait_are_delayed_and_the_other_key_is_served() -> None:
    """Held by an event: the seventeenth refusal in a second waits, while the other key's request is answered."""
    engine = FakeEngine(saying("a"))
    state = state_around(engine, max_num_queued=8)
    state.num_tenants = 2
    delayed, may_go = asyncio.Event(), asyncio.Event()

    async def sleep(_: float) -> None:
        delayed.set()
        await may_go.wait()

    state.refusal_pace = RefusalPace(2, clock=lambda: 0.0, sleep=sleep)
    for number in range(7):
        state.admission.add(1000 + number, tenant=0, num_tokens=1)
    transport = httpx.ASGITransport(app_around(state, api_keys=("one", "two")))
    async with httpx.AsyncClient(transport=transport, base_url="http://smoe") as client:

        async def post(key: str) -> httpx.Response:
            return await client.post("/v1/completions", json=COMPLETION, headers={"authorization": f"Bearer {key}"})

        for _ in range(FREE_PER_S):
            refused(await post("one"), 429, "queue_full")
        late = asyncio.create_task(post("one"))
        await delayed.wait()
        assert (await post("two")).status_code == 200
        assert not late.done()
        may_go.set()
        refused(await late, 429, "queue_full")
