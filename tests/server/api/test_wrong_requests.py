"""Wrong requests of newcomers: the message is one line that says what to do instead, and repeats nothing of theirs."""

from typing import Any

import pytest

from tests.support.servers.fake_engine import MAX_MODEL_LEN, FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "zebra"}]  # no message may repeat this word
IMAGE = {"type": "image_url", "image_url": {"url": "zebra"}}
Body = dict[str, Any]

# Path, body, the field that is named, and what the message must have.
WRONG: tuple[tuple[str, Body, str | None, str], ...] = (
    (CHAT, {"model": "zebra", "messages": HELLO}, "model", f"send one of: {MODEL}, alias"),
    (CHAT, {"model": "TEST/model", "messages": HELLO}, "model", MODEL),
    (CHAT, {"prompt": "zebra"}, "messages", f"'prompt' is a field of {COMPLETIONS}"),
    (COMPLETIONS, {"messages": HELLO}, "prompt", f"'messages' is a field of {CHAT}"),
    ("/v1/responses", {"messages": HELLO}, "input", f"'messages' is a field of {CHAT}"),
    ("/v1/embeddings", {"messages": HELLO}, "messages", "Send 'input' instead"),
    ("/chat/completions", {"messages": HELLO}, None, f"Did you mean {CHAT}?"),
    ("/nowhere", {}, None, "GET /docs lists the URLs"),
    (CHAT, {"messages": HELLO, "max_tokens": 9999}, "max_tokens", "Set 'max_tokens' to at most 2"),
    (CHAT, {"messages": HELLO, "max_completion_tokens": 9999}, "max_completion_tokens", "to at most 2"),
    ("/v1/responses", {"input": "zebra", "max_output_tokens": 9999}, "max_output_tokens", "Set 'max_output_tokens' to"),
    (COMPLETIONS, {"prompt": [5] * (MAX_MODEL_LEN + 1)}, "prompt", "Shorten"),
    (CHAT, {"messages": HELLO, "temperature": 3}, "temperature", "at most 2"),
    (CHAT, {"messages": HELLO, "temperature": "zebra"}, "temperature", "expected a number"),
    (CHAT, {"messages": HELLO, "n": 1000}, "n", "at most 128"),
    (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "requires 'logprobs': true"),
    (CHAT, {"messages": []}, "messages", "must not be empty"),
    (CHAT, {"messages": [{"role": "zebra", "content": "a"}]}, "messages[0].role", "'system', 'developer', 'user'"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
    (CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}, "stream_options", "'stream': true"),
    (CHAT, {"messages": HELLO, "structured_outputs": {"regex": "(zebra"}}, "structured_outputs.regex", "regular expr"),
    (CHAT, {"messages": HELLO, "format": {"type": "object"}}, "format", "Send 'response_format' instead"),
    (CHAT, {"messages": HELLO, "max_new_tokens": 5}, "max_new_tokens", "Send 'max_tokens' instead"),
    (CHAT, {"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    (CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice", "has no 'tools'"),
    (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type", "reads no images"),
    (CHAT, {"messages": HELLO, "audio": {}}, "audio", "writes text only"),
    (CHAT, {"messages": HELLO, "best_of": 2}, "best_of", "Send 'n'"),
    (CHAT, {"messages": HELLO, "web_search_options": {}}, "web_search_options", "in 'tools'"),
    (CHAT, {"messages": HELLO, "use_beam_search": True}, "use_beam_search", "'temperature': 0"),
    (COMPLETIONS, {"prompt": "zebra", "suffix": "zebra"}, "suffix", "trained to fill in"),
    ("/v1/responses", {"input": "zebra", "previous_response_id": "zebra"}, "previous_response_id", "all turns in"),
    ("/v1/responses", {"input": "zebra", "conversation": "zebra"}, "conversation", "all turns in 'input'"),
    ("/v1/responses", {"input": "zebra", "background": True}, "background", "with the response"),
    ("/v1/responses", {"input": [{"type": "zebra"}]}, "input[0].type", "must be one of 'message'"),
    (COMPLETIONS, {"prompt": "zebra", "best_of": 3}, "best_of", "must equal 'n'"),
    (COMPLETIONS, {"prompt": "zebra", "max_tokens": 0}, "max_tokens", "only with 'echo'"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "part"), WRONG, ids=[f"{row[0]} {row[3]}" for row in WRONG])
async def test_a_wrong_request_is_told_what_to_do(path: str, body: Body, param: str | None, part: str) -> None:
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code in (400, 404), reply.text
    error = reply.json()["error"]
    assert error["param"] == param and part in error["message"], error
    assert "\n" not in error["message"] and "zebra" not in reply.text
    assert not [word for word in ("pydantic", "Input should", "Traceback", "<class") if word in error["message"]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"prompt": "a" "n": 1}', "expected a comma or the end"),
        (b'{"prompt" "a"}', "expected a colon after the name"),
        (b"{'prompt': 'a'}", "expected a name in double quotes"),
        (b'{"prompt": "a\nb"}', r"write \n or \t"),
        (b'{"prompt": "a\\z"}', "unknown escape"),
        (b'{"prompt": "a', "no closing quote"),
        (b'{"prompt": }', "expected a value"),
        (b'{"prompt": "a"} {}', "expected nothing more"),
        (b'{"prompt": zebra}', "line 1, column 12"),
    ],
)
async def test_invalid_json_has_its_place_and_a_reason(text: bytes, reason: str) -> None:
    async with client_of(state_around(FakeEngine(saying("fine")))) as client:
        reply = await client.post(COMPLETIONS, content=text, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "invalid_json")
    assert reason in error["message"] and "zebra" not in error["message"]
