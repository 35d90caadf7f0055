"""A bad input gets a clear error and changes nothing: the next good request has byte for byte the same reply."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import httpx
import pytest

from tests.e2e.bad_inputs import OLLAMA_ROWS, ROWS
from tests.e2e.bad_inputs.extremes import EXTREMES
from tests.e2e.bad_inputs.raw import RAW
from tests.e2e.bad_inputs.rows import (
    CHAT,
    COMPLETIONS,
    COUNT,
    DETOKENIZE,
    EMBEDDINGS,
    EVERYWHERE,
    HI,
    MESSAGES,
    OLLAMA,
    OLLAMA_CHAT,
    OLLAMA_EMBED,
    OLLAMA_EMBEDDINGS,
    OLLAMA_GENERATE,
    OLLAMA_RAW,
    RERANK,
    RESPONSES,
    SCORE,
    TOKENIZE,
    Body,
    Endpoint,
    bodies,
)
from tests.support.servers.running import MODEL, RunningServer

JSON = {"content-type": "application/json"}
# Strings that no error may contain: parts of the request, and names from the server's source.
SECRETS = (
    "Zebra",
    "Traceback",
    "pydantic",
    "Error(",
    "Exception",
    ".py",
    "server.",
    "engine.",
    "/model/",
    "llguidance",
)
ANTHROPIC_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def canary(client: httpx.Client) -> bytes:
    """Return the reply to a good request, and check that the server is healthy."""
    body = {**COMPLETIONS.good, "max_tokens": 12, "temperature": 0, "logprobs": 2, "seed": 1}
    reply = client.post(COMPLETIONS.path, json=body).json()
    assert client.get("/health").status_code == 200
    return json.dumps([reply["choices"], reply["usage"]["completion_tokens"]]).encode()


@pytest.fixture(scope="module")
def undisturbed(server: RunningServer, client: httpx.Client) -> Iterator[bytes]:
    """The canary's reply before any bad input. At the end no block is in use and the accounts add up."""
    yield canary(client)
    server.settled_metrics()


@pytest.fixture(autouse=True)
def nothing_changed(client: httpx.Client, undisturbed: bytes) -> Iterator[None]:
    yield
    assert canary(client) == undisturbed


def no_number(name: str) -> NoReturn:
    raise AssertionError(f"the reply has {name}")


def error_param(reply: httpx.Response) -> object:
    error = reply.json()["error"]
    return None if isinstance(error, str) else error.get("param")


def refusal(client: httpx.Client, endpoint: Endpoint, body: bytes | Body, status: int = 400) -> dict[str, Any]:
    """Return the error of a request: a 4xx in the shape of its API, which repeats nothing of the request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client.post(endpoint.path, content=content, headers=JSON)
    assert reply.status_code == status, (content[-300:], reply.text[:300])
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    text = reply.text.replace(f"{error_param(reply)}", "")  # the name of a field may be one of the secrets
    assert not [secret for secret in SECRETS if secret in text], reply.text[:500]
    given = reply.json()["error"]
    error: dict[str, Any] = {"message": given} if endpoint in OLLAMA else given
    assert error["message"] and len(reply.text) < 1000
    if endpoint in OLLAMA:
        assert isinstance(given, str) and reply.json().keys() == {"error"}
    elif endpoint in (MESSAGES, COUNT):
        assert set(error) == {"type", "message"} and reply.json()["type"] == "error"
        assert error["type"] == ANTHROPIC_TYPES[status]
    else:
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize("row", ROWS)
def test_an_invalid_field_is_a_400_that_names_it(client: httpx.Client, row: str) -> None:
    for endpoint, (change, code, param) in itertools.product(ROWS[row].endpoints, ROWS[row].cases):
        for body in bodies(endpoint, change):
            error = refusal(client, endpoint, body, ROWS[row].status)
            if "code" in error:
                assert (error["code"], error["param"]) == (code, param or error["param"]), (str(change)[:200], error)
            elif endpoint in OLLAMA and row in OLLAMA_ROWS:  # its errors are a text
                assert param is None or f"'{param}'" in error["message"], (str(change)[:200], error)


@pytest.mark.parametrize("row", RAW)
@pytest.mark.parametrize("endpoint", EVERYWHERE, ids=lambda endpoint: endpoint.path)
def test_a_body_that_is_no_strict_json_object_is_refused(client: httpx.Client, endpoint: Endpoint, row: str) -> None:
    for body, code in RAW[row]:
        assert refusal(client, endpoint, body).get("code", code) == code, body[:80]


@pytest.mark.parametrize("endpoint", EVERYWHERE, ids=lambda endpoint: endpoint.path)
def test_stream_is_a_boolean(client: httpx.Client, endpoint: Endpoint) -> None:
    for value in ["Zebra", "true", 1, 0, [], {}] if endpoint.can_stream else []:
        assert refusal(client, endpoint, {**endpoint.good, "stream": value}).get("param", "stream") == "stream"


@pytest.mark.parametrize("endpoint", EVERYWHERE, ids=lambda endpoint: endpoint.path)
def test_unknown_fields_are_named_in_a_header_unless_their_names_are_unfit_for_it(
    client: httpx.Client, endpoint: Endpoint
) -> None:
    body = {**endpoint.good, "temprature": {"": [None]}, "": 1, "x\r\ny": 2, "\0": 3, "z" * 65: 4, "\u00e9": 5}
    reply = client.post(endpoint.path, json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-smoe-ignored-params"] == "?, temprature"


@pytest.mark.parametrize(
    ("messages", "repairs"),
    [
        ([HI, HI], "joined-turns"),
        ([{"role": "assistant", "content": "x"}, HI], "added-user"),
        ([HI, {"role": "system", "content": "x"}, HI], "moved-system"),
        ([{"role": "system", "content": "x"}], "added-user"),
        ([HI, {"role": "assistant", "content": "x"}, {"role": "system", "content": "y"}], "system-as-user"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_roles_out_of_order_are_repaired_and_the_repairs_named(
    client: httpx.Client, messages: list[Body], repairs: str
) -> None:
    for body in bodies(CHAT, {"messages": messages}):
        reply = client.post(CHAT.path, json=body)
        assert reply.status_code == 200
        assert repairs in reply.headers["x-smoe-repaired"]


ODD_BUT_LEGAL: list[tuple[Endpoint, Body]] = [
    *[(COMPLETIONS, {"prompt": text}) for text in (" ", "\n", "\0", "\ufeff", "\u200d", "\u202e", "</s>", "<0x41>")],
    *[(COMPLETIONS, {"prompt": [[token]]}) for token in (0, 1, 2, 3071)],
    *[
        (CHAT, {"messages": [{**HI, "content": text}]})
        for text in ("", " \t\n", "[INST] </s><s>", "\0", "a\u0301" * 99)
    ],
    (CHAT, {"messages": [{**HI, "name": 5, "": 1, "content": [{"type": "text", "text": "", "cache_control": {}}]}]}),
    (COMPLETIONS, {"timeout_s": None, "seed": -1, "top_k": 2**63 - 1, "stop": [], "logit_bias": {"5": 1e-320}}),
    (COMPLETIONS, {"echo": True, "max_tokens": 0, "logprobs": 0, "n": 8}),
    (COMPLETIONS, {"truncate_prompt_tokens": 1, "echo": True, "logprobs": 20, "prompt": "a b c d"}),
    (COMPLETIONS, {"structured_outputs": {"regex": "/\n|\\\\"}}),
    (TOKENIZE, {"model": None, "prompt": "\0\u202e"}),
    (DETOKENIZE, {"tokens": [], "model": None}),
    *[(EMBEDDINGS, {"input": text}) for text in (" ", "\0", "\ufeff", "</s>", [[0], [3071]], [2])],
    (EMBEDDINGS, {"input": " ", "add_special_tokens": False, "dimensions": 1, "truncate_prompt_tokens": 1}),
    (SCORE, {"text_1": "\0", "text_2": ["\ufeff", " "]}),
    (RESPONSES, {"input": "", "metadata": None}),
    (MESSAGES, {"system": "", "messages": [HI, HI]}),
    *[(OLLAMA_RAW, {"prompt": text}) for text in (" ", "\0", "\ufeff", "[INST] </s>")],
    (OLLAMA_CHAT, {"messages": [HI, HI], "format": "", "options": {"stop": "", "seed": -1, "num_predict": 1.0}}),
    *[(OLLAMA_EMBEDDINGS, {"prompt": text, "options": 5}) for text in ("", "\0", "word " * 9999)],
]


@pytest.mark.parametrize(("endpoint", "change"), ODD_BUT_LEGAL, ids=lambda value: str(value)[:50])
def test_odd_but_legal_requests_are_answered(client: httpx.Client, endpoint: Endpoint, change: Body) -> None:
    for body in bodies(endpoint, change):
        reply = client.post(endpoint.path, json=body)
        assert reply.status_code == 200, reply.text
        assert "server_error" not in reply.text


@pytest.mark.parametrize(("field", "status"), [("timeout_s", 504), ("queue_timeout_s", 503)])
def test_a_deadline_that_has_passed_fails_at_once(client: httpx.Client, field: str, status: int) -> None:
    for body in bodies(COMPLETIONS, {field: 5e-324}):
        reply = client.post(COMPLETIONS.path, json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, field)


@pytest.mark.parametrize("path", ["Zebra", "%2e%2e%2f", "C:%5C", f"{MODEL}%00", f"{MODEL}%20", MODEL.upper(), "%FF"])
def test_only_a_served_model_is_shown(client: httpx.Client, path: str) -> None:
    reply = client.get(f"/v1/models/{path}")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert "Zebra" not in reply.text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        *[
            (text, "invalid_type")
            for text in ("", "Zebra", "nan", "inf", "1_0", "%D9%A3", "%2B5", "%205", "%00", "0x5")
        ],
        *[(text, "decimal_above_max_value") for text in ("61", "1e300", "1e999")],
        *[(text, "decimal_below_min_value") for text in ("0", "-1", "-0", "5e-324")],
    ],
)
def test_a_window_of_experts_is_a_number_in_plain_decimal(client: httpx.Client, text: str, code: str) -> None:
    reply = client.get(f"/experts?window={text}")
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "window", code)


def test_a_body_over_the_limit_is_refused_unread(client: httpx.Client) -> None:
    reply = client.post(COMPLETIONS.path, content=b" " * ((1 << 20) + 1))
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large"


TOO_MUCH = {
    "a character": "a" * 1_000_000,
    "blanks": " " * 1_000_000,
    "emoji": "\U0001f600" * 80_000,
    "combining marks": "e" + "\u0301" * 160_000,
    "bytes by name": "<0x41>" * 150_000,
    "control tokens by name": "[INST]</s>" * 90_000,
    "private use": "".join(map(chr, range(0xE000, 0xF8FF))) * 25,
}
BODY_WITH: dict[str, Callable[[str], Body]] = {
    COMPLETIONS.path: lambda text: {"prompt": text},
    CHAT.path: lambda text: {"messages": [{"role": "user", "content": text}]},
    RESPONSES.path: lambda text: {"input": text},
    MESSAGES.path: lambda text: {"messages": [{"role": "user", "content": text}]},
    COUNT.path: lambda text: {"messages": [{"role": "user", "content": text}]},
    TOKENIZE.path: lambda text: {"prompt": text},
    EMBEDDINGS.path: lambda text: {"input": text},
    SCORE.path: lambda text: {"text_2": text},
    RERANK.path: lambda text: {"documents": [text]},
    OLLAMA_CHAT.path: lambda text: {"messages": [{"role": "user", "content": text}]},
    OLLAMA_GENERATE.path: lambda text: {"prompt": text},
    OLLAMA_EMBED.path: lambda text: {"input": text, "truncate": False},
}


@pytest.mark.parametrize("text", TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_megabyte_of_any_text_is_too_long(client: httpx.Client, text: str) -> None:
    for endpoint in (one for one in EVERYWHERE if one.path in BODY_WITH):
        error = refusal(client, endpoint, endpoint.good | BODY_WITH[endpoint.path](text))
        assert error.get("code", "context_length_exceeded") == "context_length_exceeded"


def pairwise(extremes: dict[str, list[Any]], most: int) -> Iterator[Body]:
    """Yield bodies of at most `most` fields that contain every pair of values of different fields.

    Greedy: a body starts with the first missing pair and adds the values that complete most missing pairs.
    """
    values = [(name, index) for name, choices in extremes.items() for index in range(len(choices))]
    left = dict.fromkeys(pair for pair in itertools.combinations(values, 2) if pair[0][0] != pair[1][0])
    while left:
        chosen = list(next(iter(left)))
        while len(chosen) < most:
            names = {name for name, _ in chosen}
            news = [(sum((a, b) in left or (b, a) in left for a in chosen), b) for b in values if b[0] not in names]
            chosen.append(max(news, key=lambda new: new[0])[1])
        for pair in itertools.permutations(chosen, 2):
            left.pop(pair, None)
        yield {name: extremes[name][index] for name, index in chosen}


def test_the_bodies_of_extremes_have_every_pair() -> None:
    small = {"a": [1, 2], "b": [1], "c": [1, 2, 3], "d": [1, 2]}
    found = {pair for body in pairwise(small, 3) for pair in itertools.combinations(sorted(body.items()), 2)}
    items = [(name, value) for name, values in small.items() for value in values]
    assert found == {pair for pair in itertools.combinations(items, 2) if pair[0][0] != pair[1][0]}


def test_extreme_legal_values_work_together_or_are_a_400(client: httpx.Client) -> None:
    for body in pairwise(EXTREMES, 5):
        reply = client.post(COMPLETIONS.path, json={"model": MODEL, "prompt": "It", "max_tokens": 3, **body})
        assert reply.status_code in (200, 400), (body, reply.text)
        assert '"server_error"' not in reply.text, body
        if not body.get("stream") or reply.status_code == 400:
            assert_numbers(json.loads(reply.text, parse_constant=no_number))
        else:
            assert reply.text.endswith("data: [DONE]\n\n"), body


def assert_numbers(reply: Body) -> None:
    """Check that every position but the prompt's first has a logprob."""
    for choice in reply.get("choices", []):
        logprobs = choice["logprobs"] or {"token_logprobs": []}
        assert None not in logprobs["token_logprobs"][1:], reply
