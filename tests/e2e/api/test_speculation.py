"""A server with drafts, the default, gives the replies of one without: texts, ids, logprobs, stop strings, usage."""

from typing import Any

import httpx
import pytest

from tests.support.servers.running import MODEL, RunningServer, forked_server

REPEATED = "One two three four five six seven. " * 6
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": REPEATED}], "max_tokens": 60, "return_token_ids": True}
COMPLETION: dict[str, Any] = {"prompt": REPEATED, "max_tokens": 80, "return_token_ids": True}
SCHEMA = {
    "name": "place",
    "schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "is_open": {"type": "boolean"},
            "country": {"enum": ["Peru"]},
        },
        "required": ["city", "is_open", "country"],
        "additionalProperties": False,
    },
}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {**COMPLETION, "temperature": 0, "logprobs": 2}),
    ("/v1/completions", {**COMPLETION, "temperature": 0.7, "seed": 4, "n": 3, "repetition_penalty": 1.1}),
    ("/v1/completions", {**COMPLETION, "temperature": 0, "allowed_token_ids": [300, 301, 302], "min_tokens": 70}),
    ("/v1/completions", {**COMPLETION, "temperature": 0, "stop": ["three", " seven. One"], "ignore_eos": True}),
    ("/v1/chat/completions", {**CHAT, "temperature": 0, "prediction": {"type": "content", "content": REPEATED}}),
    ("/v1/chat/completions", {**CHAT, "seed": 1, "expert_usage": True, "expert_routing": True}),
    ("/v1/chat/completions", {**CHAT, "seed": 2, "response_format": {"type": "json_object"}}),
    (
        "/v1/chat/completions",
        {**CHAT, "temperature": 0, "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    ),
]
MAX_ROUNDS = 10  # while other processes take the cores, no draft may seem worth its time


def _replies(server: RunningServer) -> list[dict[str, Any]]:
    """Return what the replies have in common whenever they are computed. Prompts come from the cache in the second
    round, so that all rounds are alike."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for _ in range(2):
            bodies = [client.post(path, json={"model": MODEL, "seed": 0, **body}).json() for path, body in BODIES]
    for body in bodies:
        assert "error" not in body, body
        body["usage"].pop("prompt_tokens_details")
    return [{name: body[name] for name in ("choices", "usage", "system_fingerprint", "seed")} for body in bodies]


def _num_drafted(server: RunningServer) -> float:
    return server.settled_metrics()["smoe_drafted_tokens_total", ()]


def test_the_replies_are_those_of_a_server_without_drafts(server: RunningServer) -> None:
    with forked_server("--dtype", "float32", "--threads", "1", "--embeddings", "--speculation", "off") as plain:
        expected = _replies(plain)
        assert _num_drafted(plain) == 0
    before = _num_drafted(server)
    for _ in range(MAX_ROUNDS):
        assert _replies(server) == expected
        if _num_drafted(server) > before:
            return
    pytest.fail("nothing was drafted")
