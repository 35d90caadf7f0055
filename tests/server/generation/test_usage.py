"""server/generation/usage.py: usage with the tokens of each expert, and the experts of each token."""

import math
import struct
from typing import Any

import pytest

from tests.support.servers.fake_engine import experts_of, gates_of, prompt_experts
from tests.support.servers.posted import PROMPTS, TOKENS, an_engine, post
from tests.support.servers.serving import events

pytestmark = pytest.mark.anyio


def added(*counts: list[list[int]]) -> list[list[int]]:
    return [[sum(of_expert) for of_expert in zip(*layer, strict=True)] for layer in zip(*counts, strict=True)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
async def test_usage_counts_the_tokens_of_each_expert_on_request(url: str, stream: bool) -> None:
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
    """The text of token 502 is the stop string: it was sampled, but never computed as input."""
    from tests.support.servers.serving import tokenizer

    stop = tokenizer().token_text(502).replace("\u2581", " ")
    response = await post(an_engine(), prompt=PROMPTS, stream=stream, expert_usage=True, stop=stop)
    usage = (events(response.text)[-1] if stream else response.json())["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["expert_tokens"] == {
        "prompt": added(*map(prompt_experts, PROMPTS)),
        "completion": added(prompt_experts([501]), prompt_experts([501])),
    }


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
async def test_routing_has_each_token_but_the_last_in_streams_and_full_replies(url: str) -> None:
    expected = [[experts_of(token)] for token in TOKENS]
    (choice,) = (await post(an_engine(), url, expert_routing=True)).json()["choices"]
    assert choice["expert_routing"] == expected
    chunks = events((await post(an_engine(), url, expert_routing=True, stream=True)).text)
    assert [position for chunk in chunks for position in chunk["choices"][0]["expert_routing"]] == expected
    assert all("expert_tokens" not in (chunk.get("usage") or {}) for chunk in chunks)


async def test_without_expert_fields_a_reply_has_no_expert_data() -> None:
    engine = an_engine()
    body = (await post(engine)).json()
    assert "expert_tokens" not in body["usage"] and "expert_routing" not in body["choices"][0]
    assert not engine.submitted[0].expert_usage and not engine.submitted[0].expert_routing


def reported(choices: list[Any], field: str) -> list[Any]:
    return [position for choice in choices for position in choice[field]]


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_gate_logits_and_weights_come_with_the_experts_of_each_token(url: str, stream: bool) -> None:
    response = await post(an_engine(), url, gate_logits=True, stream=stream)
    choices = [chunk["choices"][0] for chunk in events(response.text)] if stream else response.json()["choices"]
    assert reported(choices, "expert_routing") == [[experts_of(token)] for token in TOKENS]
    assert reported(choices, "gate_logits") == [[list(struct.unpack("<8f", gates_of(token)))] for token in TOKENS]
    share = 1 / (1 + math.exp(-1))  # the logits of a token's two experts differ by 1
    assert reported(choices, "expert_weights") == [[pytest.approx([share, 1 - share])]] * len(TOKENS)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 4])
async def test_an_echoed_prompt_has_its_gate_logits_too(stream: bool, max_tokens: int) -> None:
    fields = {"gate_logits": True, "echo": True, "expert_usage": True, "max_tokens": max_tokens}
    engine = an_engine()
    response = await post(engine, stream=stream, **fields)
    tokens = PROMPTS[0] + TOKENS[: max(0, max_tokens - 1)]
    *chunks, last = events(response.text) if stream else [response.json()]
    choices = [chunk["choices"][0] for chunk in chunks or [last]]
    assert reported(choices, "expert_routing") == [[experts_of(token)] for token in tokens]
    assert [layers[0] for layers in reported(choices, "gate_logits")] == [
        list(struct.unpack("<8f", gates_of(token))) for token in tokens
    ]
    completion = prompt_experts(TOKENS[: max(0, max_tokens - 1)])
    assert last["usage"]["expert_tokens"] == {"prompt": prompt_experts(PROMPTS[0]), "completion": completion}
    assert engine.submitted[0].prompt_routing


async def test_a_text_that_is_only_scored_reports_the_experts_of_its_tokens() -> None:
    engine = an_engine()
    fields = {"expert_routing": True, "echo": True, "max_tokens": 0, "logprobs": 1}
    (choice,) = (await post(engine, **fields)).json()["choices"]
    assert choice["expert_routing"] == [[experts_of(token)] for token in PROMPTS[0]]
    assert "gate_logits" not in choice
    assert engine.submitted[0].prompt_routing


async def test_only_an_echoed_prompt_and_only_gate_logits_report_the_prompt_of_a_text_that_goes_on() -> None:
    for fields in ({"gate_logits": True}, {"expert_routing": True, "echo": True}):
        engine = an_engine()
        (choice,) = (await post(engine, **fields)).json()["choices"]
        assert choice["expert_routing"] == [[experts_of(token)] for token in TOKENS]
        assert not engine.submitted[0].prompt_routing
        assert ("gate_logits" in choice) == ("gate_logits" in fields)
