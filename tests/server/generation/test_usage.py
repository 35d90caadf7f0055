"""The experts over HTTP: what a request may ask of them, what its reply tells, /experts, and the metrics."""

import weakref
from typing import Any

import httpx
import msgspec
import pytest

from engine.types import StepStats
from server.api.app import create_app
from server.http.middleware import with_middleware
from server.observability.expert_load import WINDOW_S, ExpertLoad
from server.observability.metrics import Metrics
from tests.support.fake_engine import EOS, READY, FakeEngine, experts_of, prompt_experts
from tests.support.serving import MODEL, client_of, events, state_around

pytestmark = pytest.mark.anyio

PROMPTS = [[1, 500, 9], [1, 600]]
TOKENS = [501, 502, 503]  # generated, then the end token
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
ON = [[True] * 8]


def an_engine() -> FakeEngine:
    return FakeEngine(lambda request: [*TOKENS, EOS])


async def post(engine: FakeEngine, url: str = "/v1/completions", **fields: Any) -> Any:
    given = CHAT if "chat" in url else {"prompt": PROMPTS[:1]}
    async with client_of(state_around(engine)) as client:
        return await client.post(url, json={"model": MODEL, **given, **fields})


def added(*counts: list[list[int]]) -> list[list[int]]:
    return [[sum(of_expert) for of_expert in zip(*layer, strict=True)] for layer in zip(*counts, strict=True)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
async def test_usage_tells_what_the_experts_took_when_asked(url: str, stream: bool) -> None:
    engine = an_engine()
    response = await post(engine, url, n=2, stream=stream, expert_usage=True)
    body = events(response.text)[-1] if stream else response.json()
    (first, second) = engine.submitted
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["expert_tokens"] == {
        "prompt": prompt_experts(first.prompt_token_ids),
        "completion": added(prompt_experts(TOKENS), prompt_experts(TOKENS)),
    }
    assert (first.expert_usage, second.expert_usage) == (True, False), "a prompt is counted once, whatever n is"


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_add_up_and_a_stop_string_ends_the_count(stream: bool) -> None:
    """The text of token 502 is the stop string: it was sampled, and never computed as input."""
    from tests.support.serving import tokenizer

    stop = tokenizer().token_text(502).replace("\u2581", " ")
    response = await post(an_engine(), prompt=PROMPTS, stream=stream, expert_usage=True, stop=stop)
    usage = (events(response.text)[-1] if stream else response.json())["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["expert_tokens"] == {
        "prompt": added(*map(prompt_experts, PROMPTS)),
        "completion": added(prompt_experts([501]), prompt_experts([501])),
    }


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
async def test_routing_is_told_of_each_token_but_the_last_streamed_and_not(url: str) -> None:
    expected = [[experts_of(token)] for token in TOKENS]
    (choice,) = (await post(an_engine(), url, expert_routing=True)).json()["choices"]
    assert choice["expert_routing"] == expected
    chunks = events((await post(an_engine(), url, expert_routing=True, stream=True)).text)
    assert [position for chunk in chunks for position in chunk["choices"][0]["expert_routing"]] == expected
    assert all("expert_tokens" not in (chunk.get("usage") or {}) for chunk in chunks)


async def test_who_asks_for_nothing_is_told_nothing() -> None:
    engine = an_engine()
    body = (await post(engine)).json()
    assert "expert_tokens" not in body["usage"] and "expert_routing" not in body["choices"][0]
    assert not engine.submitted[0].expert_usage and not engine.submitted[0].expert_routing


async def test_the_dial_and_the_mask_reach_the_engine() -> None:
    engine, mask = an_engine(), [[True] * 3 + [False] * 5]
    assert (await post(engine, experts_per_token=3, expert_mask=mask)).status_code == 200
    assert (engine.submitted[0].experts_per_token, engine.submitted[0].expert_mask) == (3, mask)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"experts_per_token": 9}, "experts_per_token", "integer_above_max_value"),
        ({"experts_per_token": 10**18}, "experts_per_token", "integer_above_max_value"),
        ({"expert_mask": []}, "expert_mask", "invalid_value"),
        ({"expert_mask": ON * 2}, "expert_mask", "invalid_value"),
        ({"expert_mask": [[True] * 7]}, "expert_mask", "invalid_value"),
        ({"expert_mask": [[True] + [False] * 7]}, "expert_mask", "invalid_value"),
        ({"expert_mask": [[True] * 3 + [False] * 5], "experts_per_token": 4}, "expert_mask", "invalid_value"),
    ],
)
async def test_what_the_model_cannot_do_is_a_400_that_names_the_field(
    url: str, stream: bool, fields: dict[str, Any], param: str, code: str
) -> None:
    engine = an_engine()
    response = await post(engine, url, stream=stream, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert not engine.submitted


@pytest.mark.parametrize(
    "fields", [{"experts_per_token": 1}, {"expert_mask": ON}, {"expert_usage": True}, {"expert_routing": True}]
)
async def test_a_model_without_experts_refuses_each_field(fields: dict[str, Any]) -> None:
    engine = an_engine()
    engine.ready = msgspec.structs.replace(READY, num_experts=0, experts_per_token=0)
    response = await post(engine, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, *fields, "unsupported_parameter")
    assert (await post(engine, expert_usage=False, expert_routing=False)).status_code == 200


async def test_experts_are_reported_since_the_start_and_over_a_window() -> None:
    async with client_of(state_around(an_engine())) as client:
        report = (await client.get("/experts")).json()
        (layer,) = report["layers"]
        assert (report["since"], report["window_s"], layer["layer"]) == (5.0, None, 0)
        assert layer["tokens"] == [0, 0, 9, 0, 0, 0, 0, 0] and layer["share"][2] == 1.0
        assert (layer["entropy"], layer["imbalance"]) == (0.0, 8.0)
        (top,) = layer["top_tokens"][2]
        assert (top["id"], top["count"]) == (7, 9) and isinstance(top["text"], str)
        recent = (await client.get("/experts?window=60")).json()
        assert (recent["window_s"], recent["layers"][0]["tokens"][2]) == (60.0, 1)
        empty = (await client.post("/experts/reset")).json()["layers"][0]
        assert (empty["share"], empty["entropy"], empty["imbalance"]) == ([0.0] * 8, 0, 0)


@pytest.mark.parametrize(
    ("window", "code"),
    [
        ("0", "decimal_below_min_value"),
        ("-1", "decimal_below_min_value"),
        ("61", "decimal_above_max_value"),
        ("nan", "invalid_type"),
        ("1e999", "decimal_above_max_value"),
        ("", "invalid_type"),
        ("minute", "invalid_type"),
    ],
)
async def test_a_window_is_one_to_sixty_seconds(window: str, code: str) -> None:
    async with client_of(state_around(an_engine())) as client:
        response = await client.get("/experts", params={"window": window})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "window", code)


async def test_a_misspelled_window_is_named() -> None:
    async with client_of(state_around(an_engine())) as client:
        response = await client.get("/experts", params={"windw": 60, "a b": 1})
        spelled = await client.get("/experts", params={"window": 60})
    assert response.headers["x-smoe-ignored-params"] == "?, windw"
    assert "x-smoe-ignored-params" not in spelled.headers


async def test_experts_of_an_engine_that_is_gone_are_a_503() -> None:
    engine = an_engine()
    engine.phase = "dead"
    async with client_of(state_around(engine)) as client:
        assert (await client.get("/experts")).status_code == 503


def test_the_imbalance_is_that_of_the_last_minute() -> None:
    now = [0.0]
    window = ExpertLoad(lambda: now[0])
    assert window.imbalance() == []
    window.add([[6, 0, 0, 0], [1, 1, 1, 1]])
    now[0] = 50.0
    window.add([[0, 2, 0, 0], [0, 0, 0, 4]])
    assert window.imbalance() == [3.0, 2.5]
    now[0] = WINDOW_S + 1
    assert window.imbalance() == [4.0, 4.0]
    now[0] = 2 * WINDOW_S
    assert window.imbalance() == [0.0, 0.0]


def test_counts_are_forgotten_after_a_minute_though_nobody_asks() -> None:
    class Counts(list[list[int]]):
        """One that can be watched."""

    now = [0.0]
    window = ExpertLoad(lambda: now[0])
    old = Counts([[1, 2]])
    watched = weakref.ref(old)
    window.add(old)
    del old
    now[0] = WINDOW_S + 1
    window.add([[0, 3]])
    assert watched() is None
    assert window.imbalance() == [2.0]


def test_metrics_count_what_each_expert_took() -> None:
    metrics = Metrics(MODEL)
    for tokens in ([[3, 1], [2, 2]], [[0, 4], [4, 0]]):
        metrics.record_step(StepStats(expert_tokens=tokens))
    metrics.record_step(StepStats())
    found = {
        (sample.name, sample.labels["layer"], sample.labels.get("expert")): sample.value
        for family in metrics.exposition.collect()
        for sample in family.samples
        if "expert" in sample.name
    }
    counts = {(layer, expert): found["smoe_expert_tokens_total", layer, expert] for layer in "01" for expert in "01"}
    assert counts == {("0", "0"): 3, ("0", "1"): 5, ("1", "0"): 6, ("1", "1"): 2}
    assert found["smoe_expert_imbalance_ratio", "1", None] == 1.5


async def test_experts_need_a_key_where_there_is_one() -> None:
    state = state_around(an_engine())
    app = with_middleware(
        create_app(state),
        api_keys=("key",),
        open_paths=frozenset(),
        metrics_auth=False,
        max_body_bytes=1 << 20,
        allowed_origins=(),
        root_path="",
        on_http=state.metrics.http,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://smoe") as client:
        for headers, status in (({}, 401), ({"authorization": "Bearer key"}, 200)):
            assert (await client.get("/experts", headers=headers)).status_code == status
            assert (await client.post("/experts/reset", headers=headers)).status_code == status
