"""server/api/app.py: every error has OpenAI's format, and refused requests have no side effects."""

from typing import Any

import anyio
import httpx
import pytest

from server.engine_client.status import Phase
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import (
    MODEL,
    check_error,
    client_of,
    http_counts,
    listening,
    outcomes,
    saying,
    state_around,
)

pytestmark = pytest.mark.anyio
COMPLETION = {"model": MODEL, "prompt": "a"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "param"),
    [
        (b"", JSON, 400, "invalid_json", None),
        (b"[]", JSON, 400, "invalid_type", None),
        (b'{"model": NaN}', JSON, 400, "invalid_json", None),
        (b"{}", {}, 415, "unsupported_content_type", "Content-Type"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_content_type", "Content-Type"),
        (b"{}", {**JSON, "content-encoding": "gzip"}, 415, "unsupported_content_encoding", "Content-Encoding"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_a_body_must_be_strict_json_and_say_so(
    path: str, body: bytes, headers: dict[str, str], status: int, code: str, param: str | None
) -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        check_error(await client.post(path, content=body, headers=headers), status, code, param)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "Test/model"}, 404, "model_not_found", "model"),
        ({"model": "../../etc/passwd"}, 404, "model_not_found", "model"),
        ({"n": 129}, 400, "integer_above_max_value", "n"),
        ({"temperature": "hot"}, 400, "invalid_type", "temperature"),
        ({"logit_bias": {"32000": 1}}, 400, "integer_above_max_value", "logit_bias"),
        ({"stop_token_ids": [32000]}, 400, "integer_above_max_value", "stop_token_ids"),
        ({"structured_outputs": {"regex": "["}}, 400, "invalid_value", "structured_outputs.regex"),
    ],
)
async def test_a_refused_request_reaches_neither_the_engine_nor_the_accounts(
    fields: dict[str, object], status: int, code: str, param: str, streamed: bool
) -> None:
    engine = FakeEngine(saying("a"))
    state = state_around(engine)
    async with client_of(state) as client:
        for path, body in (("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)):
            response = await client.post(path, json={**body, **fields, "stream": streamed})
            check_error(response, status, code, param)
    assert engine.submitted == []
    assert outcomes(state) == {"received": 0}


@pytest.mark.parametrize("path", ["/v1/", "/v1//models", "/V1/models", "/a/b"])
async def test_an_unknown_url_is_a_404_that_adds_no_metric_series(path: str) -> None:
    state = state_around(FakeEngine(saying("a")))
    async with client_of(state) as client:
        check_error(await client.get(path), 404, "unknown_url")
    assert http_counts(state) == {("other", "GET", "404"): 1}


async def test_replies_are_counted_under_the_template_of_their_route() -> None:
    state = state_around(FakeEngine(saying("a")))
    async with client_of(state) as client:
        await client.get("/v1/models/nothing")
        await client.post("/v1/completions", json={**COMPLETION, "stream": True})
        await client.get("/v1/completions")
    assert http_counts(state) == {
        ("/v1/models/{model_id:path}", "GET", "404"): 1,
        ("/v1/completions", "POST", "200"): 1,
        ("/v1/completions", "GET", "405"): 1,
    }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("BREW", "/tokenize", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/health", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_a_405_that_names_the_right_one(method: str, path: str, allowed: str) -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        response = await client.request(method, path)
    check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


async def test_a_clients_request_id_is_kept_and_is_part_of_the_replys_id() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        response = await client.post("/v1/completions", json=COMPLETION, headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert response.json()["id"] == "cmpl-mine-1"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("phase", "code"),
    [
        ("loading", "loading"),
        ("draining", "draining"),
        ("dead", "engine_dead"),
        ("stuck", "engine_dead"),
        ("restarting", "engine_dead"),
    ],
)
async def test_an_unavailable_server_sends_retry_after(phase: Phase, code: str, streamed: bool) -> None:
    engine = FakeEngine(saying("a"))
    engine.phase = phase
    if phase == "loading":
        engine.ready = None
    state = state_around(engine)
    async with client_of(state) as client:
        response = await client.post("/v1/completions", json={**COMPLETION, "stream": streamed})
    check_error(response, 503, code)
    assert 0 < int(response.headers["retry-after"]) <= 120
    assert engine.submitted == []
    assert outcomes(state) == ({"received": 0} if phase == "loading" else {"received": 1, "rejected": 1})


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_full_queue_is_a_429_and_counts_as_rejected(streamed: bool) -> None:
    engine = FakeEngine(saying("a"))
    engine.num_waiting = 3
    state = state_around(engine, max_num_queued=4)
    async with client_of(state) as client:
        assert (await client.post("/v1/completions", json={**COMPLETION, "stream": streamed})).status_code == 200
        response = await client.post("/v1/completions", json={**COMPLETION, "n": 2, "stream": streamed})
        check_error(response, 429, "queue_full")
        assert 0 < int(response.headers["retry-after"]) <= 120
        response = await client.post("/v1/completions", json={**COMPLETION, "n": 5})
        check_error(response, 400, "array_above_max_length", "n")  # never fits, so a retry is useless
    assert outcomes(state) == {"received": 3, "stop": 1, "rejected": 2}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_fault_before_the_first_token_is_a_500_without_details(streamed: bool) -> None:
    def broken(_: object) -> list[int]:
        raise RuntimeError("secret detail")

    engine = FakeEngine(broken)
    async with client_of(state_around(engine)) as client:
        response = await client.post("/v1/completions", json={**COMPLETION, "stream": streamed})
    check_error(response, 500, "internal_error")
    assert "secret" not in response.text


FAILURES = [
    ("died", 503, "engine_dead", None, "error"),
    ("row", 500, "internal_error", None, "error"),
    ("constraints", 400, "invalid_value", None, "error"),
    ("queue_timeout", 503, "queue_timeout", "queue_timeout_s", "timeout"),
    ("timeout", 504, "deadline_exceeded", "timeout_s", "timeout"),
]


@pytest.mark.parametrize(("how", "status", "code", "param", "outcome"), FAILURES)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_failure_before_the_first_token_is_a_real_status(
    how: Any, status: int, code: str, param: str | None, outcome: str, streamed: bool
) -> None:
    engine = FakeEngine(lambda request: [], held=True)
    state = state_around(engine)

    async def fail() -> None:
        await engine.until(lambda: bool(engine.submitted))
        engine.fail(how)

    async with client_of(state) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        response = await client.post("/v1/completions", json={**COMPLETION, "stream": streamed})
        check_error(response, status, code, param)
    assert outcomes(state) == {"received": 1, outcome: 1}
    assert ("retry-after" in response.headers) == (status == 503)
    assert (response.headers.get("x-should-retry") == "false") == (status in (500, 504))


async def test_a_head_request_has_the_headers_of_a_get_and_no_body() -> None:
    async with listening(state_around(FakeEngine(saying("a")))) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/", "/v1/models", f"/v1/models/{MODEL}", "/health", "/tokenizer_info", "/openapi.json", "/docs"):
            head, got = await client.head(path), await client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert {**got.headers, "date": "", "x-request-id": ""} == {**head.headers, "date": "", "x-request-id": ""}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_anthropics_clients_find_the_request_id_in_their_own_header(path: str) -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        refused = await client.post(path, json={})
        accepted = await client.post(path, json={"model": MODEL, "max_tokens": 1, "messages": CHAT["messages"]})
        other = await client.post("/v1/chat/completions", json=CHAT)
    for reply in (refused, accepted):
        assert reply.headers["request-id"] == reply.headers["x-request-id"]
    assert (refused.status_code, accepted.status_code) == (400, 200)
    assert "request-id" not in other.headers
