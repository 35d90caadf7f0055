"""A bad input gets a clear error and changes nothing: the next good request answers byte for byte as before."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.running import MODEL, RunningServer

GOOD = {"model": MODEL, "prompt": "It was", "max_tokens": 12, "temperature": 0}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def canary(server: RunningServer) -> object:
    reply = server.post("/v1/completions", {**GOOD, "logprobs": 2, "seed": 1}).json()
    return reply["choices"], reply["usage"]["completion_tokens"]


@pytest.fixture(scope="module", autouse=True)
def nothing_changed(server: RunningServer) -> Iterator[None]:
    before = canary(server)
    yield
    assert canary(server) == before
    server.settled_metrics()


def refused(server: RunningServer, path: str, body: bytes | dict[str, Any]) -> dict[str, Any]:
    """The error of a request, which must be a real 4xx in OpenAI's shape that never echoes its input."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx.post(server.url + path, content=content, headers={"content-type": "application/json"}, timeout=30)
    assert 400 <= reply.status_code < 500, reply.text
    assert reply.headers["x-request-id"]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in reply.text and "/site-packages/" not in reply.text
    error["status"] = reply.status_code
    return dict(error)


COMPLETION_CASES: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "nope"}, 404, "model_not_found", "model"),
    ({"model": "../../etc/passwd"}, 404, "model_not_found", "model"),
    ({"model": 5}, 400, "invalid_type", "model"),
    ({"prompt": ""}, 400, "empty_string", "prompt"),
    ({"prompt": []}, 400, "empty_array", "prompt"),
    ({"prompt": 5}, 400, "invalid_type", "prompt"),
    ({"prompt": [3072]}, 400, "integer_above_max_value", "prompt"),
    ({"prompt": [-1]}, 400, "integer_below_min_value", "prompt"),
    ({"prompt": [5] * 2048}, 400, "context_length_exceeded", "prompt"),
    ({"prompt": [5] * 2000, "max_tokens": 100}, 400, "context_length_exceeded", None),
    ({"max_tokens": -1}, 400, "integer_below_min_value", "max_tokens"),
    ({"max_tokens": 0}, 400, "integer_below_min_value", "max_tokens"),
    ({"max_tokens": 1.5}, 400, "invalid_type", "max_tokens"),
    ({"max_tokens": "5"}, 400, "invalid_type", "max_tokens"),
    ({"max_tokens": True}, 400, "invalid_type", "max_tokens"),
    ({"temperature": 2.01}, 400, "decimal_above_max_value", "temperature"),
    ({"temperature": -0.1}, 400, "decimal_below_min_value", "temperature"),
    ({"top_p": 0}, 400, "decimal_below_min_value", "top_p"),
    ({"n": 9}, 400, "integer_above_max_value", "n"),
    ({"n": 0}, 400, "integer_below_min_value", "n"),
    ({"seed": 2**64}, 400, "integer_above_max_value", "seed"),
    ({"stop": ["a"] * 5}, 400, "array_above_max_length", "stop"),
    ({"stop": ""}, 400, "empty_string", "stop"),
    ({"logit_bias": {"99999": 1}}, 400, "integer_above_max_value", "logit_bias"),
    ({"logit_bias": {"5": 101}}, 400, "decimal_above_max_value", "logit_bias"),
    ({"stop_token_ids": [99999]}, 400, "integer_above_max_value", "stop_token_ids"),
    ({"allowed_token_ids": []}, 400, "empty_array", "allowed_token_ids"),
    ({"logprobs": 21}, 400, "integer_above_max_value", "logprobs"),
    ({"stream": "yes"}, 400, "invalid_type", "stream"),
    ({"stream_options": {"include_usage": True}, "stream": False}, 400, "invalid_value", "stream_options"),
    ({"suffix": "x"}, 400, "unsupported_parameter", "suffix"),
    ({"best_of": 4}, 400, "unsupported_parameter", "best_of"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("change", "status", "code", "param"), COMPLETION_CASES, ids=lambda value: str(value)[:40])
def test_a_bad_completion_request_is_refused_by_name(
    server: RunningServer, change: dict[str, Any], status: int, code: str, param: str | None, streamed: bool
) -> None:
    error = refused(server, "/v1/completions", {**GOOD, "stream": streamed, **change})
    assert (error["status"], error["type"]) == (status, "invalid_request_error")
    assert error["code"] == code, error
    if param is not None:
        assert error["param"] == param, error


RAW_CASES: list[tuple[bytes, str]] = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"{'a': 1}", "invalid_json"),
    (b"[]", "invalid_type"),
    (b"null", "invalid_type"),
    (b'{"model": "smoe-demo", "prompt": "x", "temperature": NaN}', "invalid_json"),
    (b'{"model": "smoe-demo", "prompt": "x", "unknown": 1e999}', "invalid_json"),
    (b'{"model": "smoe-demo", "prompt": "\\ud800"}', "invalid_json"),
    (b'{"model": "smoe-demo", "prompt": "\xed\xa0\x80"}', "invalid_json"),
    (b'{"model": "smoe-demo", "model": "smoe-demo", "prompt": "x"}', "invalid_json"),
    (b"\xef\xbb\xbf{}", "invalid_json"),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, "invalid_json"),
    (b'{"model": "smoe-demo", "prompt": "x", "n": ' + b"9" * 4500 + b"}", "integer_above_max_value"),
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize(("body", "code"), RAW_CASES, ids=lambda value: repr(value)[:40])
def test_a_body_that_is_not_strict_json_is_refused(server: RunningServer, path: str, body: bytes, code: str) -> None:
    error = refused(server, path, body)
    assert (error["status"], error["code"]) == (400, code)


CHAT_CASES: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]}, ""),
    ({"max_tokens": 5, "max_completion_tokens": 6}, ""),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"chat_template": "x"}, "chat_template"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("change", "param"), CHAT_CASES, ids=lambda value: str(value)[:50])
def test_a_bad_chat_request_is_refused_by_name(
    server: RunningServer, change: dict[str, Any], param: str, streamed: bool
) -> None:
    error = refused(server, "/v1/chat/completions", {**CHAT, "stream": streamed, **change})
    assert error["status"] == 400
    assert not param or str(error["param"]).startswith(param), error


def test_an_unknown_parameter_is_named_in_a_header(server: RunningServer) -> None:
    reply = server.post("/v1/completions", {**GOOD, "temprature": 1})
    assert reply.status_code == 200
    assert reply.headers["x-smoe-ignored-params"] == "temprature"


def test_unknown_urls_and_methods_answer_in_the_same_shape(server: RunningServer) -> None:
    assert httpx.get(server.url + "/v1/nothing").json()["error"]["code"] == "unknown_url"
    wrong = httpx.get(server.url + "/v1/completions")
    assert wrong.status_code == 405 and "POST" in wrong.headers["allow"]


def test_a_body_over_the_limit_is_refused_unread(server: RunningServer) -> None:
    reply = httpx.post(server.url + "/v1/completions", content=b" " * ((1 << 20) + 1))
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


VOCAB = 3072
EXTREMES: dict[str, list[Any]] = {
    "n": [8],
    "temperature": [0, 1e-320, 1e-4, 2.0],
    "top_p": [5e-324, 1.0],
    "top_k": [-1, 1, 2**63 - 1],
    "min_p": [5e-324, 1.0],
    "frequency_penalty": [-2, 2],
    "presence_penalty": [-2, 2],
    "repetition_penalty": [5e-324, 2.0],
    "max_tokens": [0, 1],
    "min_tokens": [0, 3],
    "seed": [-(2**63), 2**63 - 1],
    "logprobs": [0, 20],
    "stop": ["\0", ["e", " ", "a", "t"], "x" * 256],
    "stop_token_ids": [[2], list(range(256)), [VOCAB - 1] * 256],
    "logit_bias": [{str(i): 100 for i in range(VOCAB)}, {str(i): -100 for i in range(VOCAB)}, {"2": 100}],
    "allowed_token_ids": [[2], [VOCAB - 1], [0] * 5000],
    "ignore_eos": [True],
    "echo": [True],
    "stream": [True],
    "priority": [-(2**31), 2**31 - 1],
    "prompt": [[0], [VOCAB - 1] * 3, "\0\u200d\U0001f600", [[1]] * 128, [5] * 32],
}


def some_pairs(count: int) -> list[dict[str, Any]]:
    """`count` pairs of extreme legal values, the same ones each time; all of them were tried once."""
    values = [(name, value) for name, extremes in EXTREMES.items() for value in extremes]
    pairs = [(a, b) for a, b in itertools.combinations(values, 2) if a[0] != b[0]]
    return [dict(pair) for pair in random.Random(0).sample(pairs, count)]


def test_extreme_legal_values_go_together_or_are_refused(server: RunningServer) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for pair in some_pairs(150):
            reply = client.post("/v1/completions", json={"model": MODEL, "prompt": "It", "max_tokens": 3, **pair})
            assert reply.status_code in (200, 400), (pair, reply.text)
            assert '"server_error"' not in reply.text, pair
            if pair.get("stream") and reply.status_code == 200:
                assert reply.text.endswith("data: [DONE]\n\n"), pair


TOO_MUCH = {
    "a character": "a" * 1_000_000,
    "blanks": " " * 1_000_000,
    "emoji": "\U0001f600" * 80_000,
    "combining marks": "e" + "\u0301" * 160_000,
    "bytes by name": "<0x41>" * 150_000,
    "control tokens by name": "[INST]</s>" * 90_000,
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("text", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_megabyte_of_anything_is_too_long(server: RunningServer, path: str, text: str) -> None:
    source: dict[str, Any] = {"prompt": text}
    if path == "/v1/chat/completions":
        source = {"messages": [{"role": "user", "content": text}]}
    assert refused(server, path, {"model": MODEL, **source})["code"] == "context_length_exceeded"
