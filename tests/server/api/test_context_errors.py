"""A full context is reported in words that clients match: each has rules of its own, which are written down here.

Each rule is what a client looks for in the error to raise its own exception for a full context.
"""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio

LONG = "word " * 500  # the model of these tests has 256 positions
BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"prompt": text},
    "/v1/responses": lambda text: {"input": text},
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}]},
}
OPENAI_PATHS = [path for path in BODIES if path != "/v1/messages"]
LIMITS = {"/v1/responses": "max_output_tokens"}

Rule = Callable[[str, dict[str, Any]], bool]  # of (text of the exception, JSON of "error")
OPENAI_RULES: dict[str, Rule] = {
    "LiteLLM": lambda text, _: "this model's maximum context length is" in text.lower(),
    "inspect-ai, OpenAI": lambda _, error: error["code"] == "context_length_exceeded",
    "inspect-ai, vLLM": lambda _, error: "maximum context length" in error["message"],
    "LangChain": lambda text, _: "context_length_exceeded" in text,
    "CrewAI": lambda text, _: "maximum context length" in text.lower(),
    "strands": lambda _, error: error["code"] == "context_length_exceeded",
    "strands, Mistral": lambda text, _: "maximum context length" in text.lower(),
}
ANTHROPIC_RULES: dict[str, Rule] = {
    "LiteLLM": lambda text, _: any(words in text.lower() for words in ("prompt is too long", "exceed context limit")),
    "inspect-ai": lambda text, _: any(
        words in text.lower() for words in ("prompt is too long", "input length and `max_tokens` exceed context limit")
    ),
}
ANTHROPIC_PROMPT_RULES: dict[str, Rule] = {  # of clients that recognise only a prompt, as Anthropic words it
    "LangChain": lambda _, error: "prompt is too long" in error["message"],
    "strands": lambda text, _: "prompt is too long:" in text.lower(),
}


async def refused(path: str, *, is_long: bool, stream: bool) -> httpx.Response:
    """Send a prompt beyond the context, or a short one whose completion does not fit."""
    limit = {LIMITS.get(path, "max_tokens"): 8 if is_long else 256}
    body = {"model": MODEL, "stream": stream, **limit, **BODIES[path](LONG if is_long else "a")}
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_long", [True, False])
@pytest.mark.parametrize("path", OPENAI_PATHS)
async def test_openais_clients_recognise_a_full_context(path: str, is_long: bool, stream: bool) -> None:
    reply = await refused(path, is_long=is_long, stream=stream)
    error = reply.json()["error"]
    assert reply.status_code == 400 and "rate" not in reply.text
    assert {name for name, rule in OPENAI_RULES.items() if not rule(f"Error code: 400 - {error}", error)} == set()
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_long", [True, False])
async def test_anthropics_clients_recognise_a_full_context(is_long: bool, stream: bool) -> None:
    reply = await refused("/v1/messages", is_long=is_long, stream=stream)
    error = reply.json()["error"]
    assert reply.status_code == 400
    rules = {**ANTHROPIC_RULES, **(ANTHROPIC_PROMPT_RULES if is_long else {})}
    assert {name for name, rule in rules.items() if not rule(reply.text, error)} == set()
