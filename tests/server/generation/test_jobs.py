"""server/generation/jobs.py: requests of the engine, and options that the model cannot follow."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from server.generation import jobs
from tests.support.servers.fake_engine import READY
from tests.support.servers.posted import an_engine, post
from tests.support.servers.serving import MODEL

pytestmark = pytest.mark.anyio

ON = [[True] * 8]


async def test_expert_options_reach_the_engine() -> None:
    engine, mask = an_engine(), [[True] * 3 + [False] * 5]
    assert (await post(engine, experts_per_token=3, expert_mask=mask)).status_code == 200
    assert (engine.submitted[0].experts_per_token, engine.submitted[0].expert_mask) == (3, mask)


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
async def test_the_model_of_a_request_names_the_adapter(url: str) -> None:
    engine = an_engine()
    engine.ready = msgspec.structs.replace(READY, adapters={"sql": "0123456789abcdef"})
    replies = [(await post(engine, url, model=name, n=2)).json() for name in (MODEL, "sql")]
    assert [request.adapter for request in engine.submitted] == ["", "", "0123456789abcdef", "0123456789abcdef"]
    assert [reply["model"] for reply in replies] == [MODEL, "sql"]
    assert [reply["system_fingerprint"] for reply in replies] == [
        READY.fingerprint, f"{READY.fingerprint}-lora-0123456789ab",
    ]  # fmt: skip


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
async def test_an_option_that_the_model_cannot_follow_is_a_400_that_names_the_field(
    url: str, stream: bool, fields: dict[str, Any], param: str, code: str
) -> None:
    engine = an_engine()
    response = await post(engine, url, stream=stream, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert not engine.submitted


@pytest.mark.parametrize(
    "fields",
    [
        {"experts_per_token": 1},
        {"expert_mask": ON},
        {"expert_usage": True},
        {"expert_routing": True},
        {"gate_logits": True},
    ],
)
async def test_a_model_without_experts_refuses_each_field(fields: dict[str, Any]) -> None:
    engine = an_engine()
    engine.ready = msgspec.structs.replace(READY, num_experts=0, experts_per_token=0)
    response = await post(engine, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, *fields, "unsupported_parameter")
    assert (await post(engine, expert_usage=False, expert_routing=False)).status_code == 200


async def test_a_grammar_is_bounded_over_all_choices() -> None:
    engine, grammar = an_engine(), {"choice": ["a" * 3000]}
    response = await post(engine, prompt=[[1]] * 128, n=8, structured_outputs=grammar)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "structured_outputs")
    assert "1024 choices" in error["message"] and not engine.submitted
    assert (await post(engine, structured_outputs=grammar)).status_code == 200


@pytest.mark.parametrize(("num_ids", "in_thread"), [(200, False), (100_000, True)])
async def test_the_ids_and_texts_of_a_long_body_are_checked_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, num_ids: int, in_thread: bool
) -> None:
    threads: list[int] = []

    def noted(check: Callable[..., None], *arguments: Any) -> None:
        threads.append(threading.get_ident())
        check(*arguments)

    for name in ("check_token_ids", "check_prompt_chars"):
        monkeypatch.setattr(jobs, name, partial(noted, getattr(jobs, name)))
    await post(an_engine(), prompt=[5] * num_ids)
    assert [thread != threading.get_ident() for thread in threads] == [in_thread] * 2
