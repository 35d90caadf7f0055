"""Requests as agent frameworks and SDKs send them by default: no field of theirs is refused.

The fields are those that inspect-ai 0.3.285, CrewAI 1.15.30, LiteLLM 1.110.2, langchain-openai 1.7.4,
langchain-anthropic 1.7.10, openai 3.57.0 and anthropic 2.14.0 sent; docs/clients.md says what was tried.
"""

from typing import Any

import pytest

from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio
TURNS = [{"role": "user", "content": "Hello"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
BASE: dict[str, dict[str, Any]] = {
    CHAT: {"messages": TURNS},
    COMPLETIONS: {"prompt": "Hello"},
    RESPONSES: {"input": "Hello"},
    MESSAGES: {"messages": TURNS, "max_tokens": 20},
}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "frequency_penalty": 0.1, "presence_penalty": 0.1}
ENCRYPTED, CACHED = ["reasoning.encrypted_content"], {"type": "ephemeral"}
REQUESTS: dict[str, tuple[str, dict[str, Any], str]] = {  # endpoint, fields, and those that are ignored
    "inspect-ai, OpenAI": (
        RESPONSES,
        {"include": ENCRYPTED, "max_output_tokens": 20, "reasoning": {"summary": "auto"}, "store": False},
        "reasoning, store",
    ),
    "inspect-ai, OpenAI-compatible": (
        CHAT,
        {**SAMPLING, "max_tokens": 60, "stop": ["9"], "logprobs": True, "top_logprobs": 2, "logit_bias": {"300": -1.0}},
        "",
    ),
    "inspect-ai, effort": (CHAT, {"max_tokens": 60, "reasoning_effort": "low"}, "reasoning_effort"),
    "inspect-ai, Anthropic": (MESSAGES, {"cache_control": CACHED, "stream": False, "tools": []}, "cache_control"),
    "inspect-ai, Anthropic, effort": (
        MESSAGES,
        {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive", "display": "summarized"}},
        "thinking, output_config.effort",
    ),
    "CrewAI": (CHAT, {**SAMPLING, "max_tokens": 60}, ""),
    "CrewAI, agent": (CHAT, {"stop": ["\nObservation:"], "max_tokens": 60}, ""),
    "CrewAI, streamed": (CHAT, {"max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}}, ""),
    "LiteLLM, completions": (COMPLETIONS, {"max_tokens": 20, "stream": True}, ""),
    "LangChain": (CHAT, {"stream": False, "max_completion_tokens": 20, "stop": ["9"]}, ""),
    "LangChain, completions": (
        COMPLETIONS,
        {
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "logprobs": None,
            "seed": None,
            "prompt": ["Hello"],
            "max_tokens": 20,
            "n": 1,
            "temperature": 0.7,
            "top_p": 1,
        },
        "",
    ),
    "LangChain, Anthropic": (MESSAGES, {"stop_sequences": ["9"]}, ""),
    "openai, everything": (
        CHAT,
        {
            "temperature": 1,
            "top_p": 1,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "n": 1,
            "stop": None,
            "parallel_tool_calls": True,
            "response_format": {"type": "text"},
            "modalities": ["text"],
            "user": "u",
            "function_call": "none",
            "functions": [],
            "store": False,
            "metadata": {},
            "service_tier": "auto",
        },
        "metadata, service_tier, store",
    ),
    "openai, completions": (
        COMPLETIONS,
        {"best_of": 1, "suffix": None, "logit_bias": {}, "stop": [], "echo": False, "max_tokens": 9},
        "",
    ),
    "openai, Responses": (
        RESPONSES,
        {
            "text": {"format": {"type": "text"}, "verbosity": "low"},
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "max_tool_calls": None,
            "include": ENCRYPTED,
        },
        "text.verbosity",
    ),
    "anthropic": (
        MESSAGES,
        {
            "temperature": 1,
            "top_p": 1,
            "top_k": 5,
            "stop_sequences": ["x"],
            "metadata": {"user_id": "u"},
            "thinking": {"type": "disabled"},
            "service_tier": "auto",
        },
        "service_tier, thinking",
    ),
}


@pytest.mark.parametrize(("path", "fields", "ignored"), REQUESTS.values(), ids=REQUESTS)
async def test_no_field_that_a_client_sends_by_default_is_refused(
    path: str, fields: dict[str, Any], ignored: str
) -> None:
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        reply = await client.post(path, json={"model": MODEL, **BASE[path], **fields})
    assert reply.status_code == 200, reply.text
    named = set(reply.headers.get("x-smoe-ignored-params", "").split(", "))
    assert named == set(ignored.split(", "))
