"""Requests of lm-eval's `local-completions` for humaneval, gsm8k and log-likelihoods."""

from typing import Any

import httpx
import pytest

from engine.types import Request
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio

SEED = 1234
HUMANEVAL = {
    "max_tokens": 100,
    "temperature": 0,
    "stop": ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "</s>"],
    "seed": SEED,
}
GSM8K = {"max_tokens": 100, "temperature": 0.0, "stop": ["Question:", "</s>", "<|im_end|>"], "seed": SEED}
SCORING = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": SEED, "echo": True}


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


async def post(answer: str, body: dict[str, Any]) -> tuple[httpx.Response, list[Request]]:
    engine = FakeEngine(saying(answer))
    async with client_of(state_around(engine)) as client:
        reply = await client.post("/v1/completions", json={"model": MODEL, **body})
    assert reply.status_code == 200, reply.text
    assert "x-smoe-ignored-params" not in reply.headers
    return reply, engine.submitted


@pytest.mark.parametrize("stop", HUMANEVAL["stop"])
async def test_each_of_humanevals_six_stops_ends_the_function(stop: str) -> None:
    body = {**HUMANEVAL, "prompt": ["def one():\n"]}
    reply, [request] = await post(f"    return 1\n{stop} more", body)
    [choice] = reply.json()["choices"]
    assert choice["text"].strip() == "return 1" and choice["finish_reason"] == "stop"
    assert request.params.temperature == 0


async def test_humanevals_samples_of_a_prompt_are_numbered() -> None:
    body = {**HUMANEVAL, "temperature": 0.2, "n": 3, "prompt": ["def one():\n"]}
    reply, requests = await post("    return 1\n\ndef two():", body)
    choices = reply.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert {choice["text"].strip() for choice in choices} == {"return 1"} and len(requests) == 3


async def test_gsm8ks_questions_as_token_ids_are_answered_in_order() -> None:
    prompts = [ids_of("Question: 1 + 1\nAnswer:"), ids_of("Question: 2 + 3 + 4\nAnswer:")]
    reply, requests = await post("It is 2.\n#### 2\n\nQuestion: 5", {**GSM8K, "prompt": prompts})
    choices = reply.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert all(choice["text"].strip().endswith("#### 2") for choice in choices)
    assert [request.prompt_token_ids for request in requests] == prompts


async def test_an_echoed_prompt_has_a_score_for_each_token_but_the_first() -> None:
    prompts = [ids_of("It was a truth"), ids_of("In the beginning God")]
    reply, _ = await post("a", {**SCORING, "prompt": prompts})
    for prompt, choice in zip(prompts, reply.json()["choices"], strict=True):
        scores = choice["logprobs"]["token_logprobs"]
        assert len(scores) == len(choice["logprobs"]["top_logprobs"]) == len(prompt) + 1
        assert scores[0] is None and all(isinstance(score, float) for score in scores[1:])
