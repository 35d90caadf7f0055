"""Random requests: B's, whose replies are compared, and A's, which are whatever a client may send."""

import itertools
import json
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.e2e.bad_inputs import ROWS
from tests.e2e.bad_inputs.raw import RAW
from tests.e2e.bad_inputs.rows import EVERYWHERE, bodies
from tests.support.servers.running import MODEL

Body = dict[str, Any]
Ending = Literal["read", "leave", "leave while it answers", "stop in the middle"]

NUM_IDS = 3000  # of the bundled model's vocabulary
MAX_BAD_BYTES = 20_000
TEXTS = ("It was", "Chapter 1. A truth universally acknowledged", "Who?", "é 漢字 \n\n", "Mr. Darcy " * 6)
SALTS = ("", "", "", "salt")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["b"]}
GRAMMARS: list[Body] = [
    {"structured_outputs": {"regex": "[a-z]{2,9} [0-9]+"}},
    {"structured_outputs": {"choice": ["yes", "no", "perhaps"]}},
    {"structured_outputs": {"grammar": 'start: "a" start | "b"'}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
]
BAD = [
    (endpoint.path, content)
    for row in ROWS.values()
    for endpoint in row.endpoints
    for change, _, _ in row.cases
    for content in (json.dumps(body).encode() for body in bodies(endpoint, change))
    if len(content) < MAX_BAD_BYTES
] + [
    (endpoint.path, content)
    for cases, endpoint in itertools.product(RAW.values(), EVERYWHERE)
    for content, _ in cases
    if len(content) < MAX_BAD_BYTES
]
GETS = (
    "/v1/models",
    "/health",
    "/metrics",
    "/load",
    "/load/recent",
    "/experts",
    "/version",
    "/openapi.json",
    "/",
    "/nothing",
    "/ping",
)


@dataclass(frozen=True)
class Call:
    """One request of B."""

    path: str
    content: bytes | None  # None: a GET
    headers: dict[str, str] = field(default_factory=dict)
    num_prompts: int = 1


@dataclass(frozen=True)
class Attack:
    """The bytes of one connection of A, and its end."""

    sent: bytes
    ending: Ending
    num_read: int = 0  # bytes, before it leaves


class Prompts:
    """Prompts of a case. A and B draw from the same stems, so that a shared prefix cache would be hit."""

    def __init__(self, rng: random.Random) -> None:
        self._stems = [[rng.randrange(300, NUM_IDS) for _ in range(rng.choice((16, 33, 90)))] for _ in range(2)]

    def ids(self, rng: random.Random) -> list[int]:
        stem = rng.choice(self._stems)
        return stem[: rng.choice((len(stem), rng.randint(1, len(stem))))] + [
            rng.randrange(3, NUM_IDS) for _ in range(rng.choice((0, 1, 5, 20)))
        ]

    def prompt(self, rng: random.Random) -> Any:
        kind = rng.random()
        if kind < 0.2:
            return rng.choice(TEXTS)
        return [self.ids(rng) for _ in range(rng.randint(2, 4))] if kind < 0.3 else self.ids(rng)


def maybe(rng: random.Random, rate: float, **fields: Any) -> Body:
    return fields if rng.random() < rate else {}


def sampling(rng: random.Random) -> Body:
    """Return sampling parameters. The seed is always set: without one the server draws it."""
    ids = [rng.randrange(3, NUM_IDS) for _ in range(rng.choice((1, 3, 200)))]
    return {
        "max_tokens": rng.randint(1, 12),
        "seed": rng.randrange(2**31),
        **maybe(rng, 0.3, temperature=0),
        **maybe(rng, 0.2, top_p=0.8),
        **maybe(rng, 0.2, top_k=20),
        **maybe(rng, 0.1, min_p=0.05),
        **maybe(rng, 0.2, frequency_penalty=1.5, presence_penalty=-0.5),
        **maybe(rng, 0.2, repetition_penalty=1.3),
        **maybe(rng, 0.5, ignore_eos=True),
        **maybe(rng, 0.2, min_tokens=1),
        **maybe(rng, 0.2, logit_bias={str(i): rng.uniform(-9, 9) for i in ids}),
        **maybe(rng, 0.1, bad_words=["the", " and"]),
        **maybe(rng, 0.1, allowed_token_ids=sorted({*ids, 5})),
        **maybe(rng, 0.2, stop=["e", "th"], include_stop_str_in_output=rng.random() < 0.5),
        **maybe(rng, 0.2, prompt_logprobs=rng.randrange(4)),
        **maybe(rng, 0.3, return_token_ids=True),
        **maybe(rng, 0.2, expert_usage=True),
        **maybe(rng, 0.2, expert_routing=True),
        **maybe(rng, 0.1, experts_per_token=rng.randint(1, 3)),
        **maybe(rng, 0.2, priority=rng.choice((-(2**31), -1, 7, 2**31 - 1))),
        **maybe(rng, 0.3, stream=True),
        **(rng.choice(GRAMMARS) if rng.random() < 0.12 else {}),
        "cache_salt": rng.choice(SALTS),
        "n": rng.choice((1, 1, 1, 2, 3)),
    }


def with_usage(body: Body) -> Body:
    return body | {"stream_options": {"include_usage": True}} if body.get("stream") else body


def completion(rng: random.Random, prompts: Prompts) -> tuple[str, Body]:
    more = {**maybe(rng, 0.4, logprobs=rng.randrange(6)), **maybe(rng, 0.2, echo=True)}
    body = {"model": MODEL, "prompt": prompts.prompt(rng), **sampling(rng), **more}
    if body.get("echo") and rng.random() < 0.3:
        body |= {"max_tokens": 0, "min_tokens": 0}
    return "/v1/completions", with_usage(body)


def messages_of(rng: random.Random) -> list[Body]:
    count = rng.choice((1, 1, 3))
    return [{"role": ("user", "assistant")[i % 2], "content": rng.choice(TEXTS)} for i in range(count)]


def chat(rng: random.Random, prompts: Prompts) -> tuple[str, Body]:
    more = maybe(rng, 0.4, logprobs=True, top_logprobs=rng.randrange(6))
    return "/v1/chat/completions", with_usage({"model": MODEL, "messages": messages_of(rng), **sampling(rng), **more})


def message(rng: random.Random, prompts: Prompts) -> tuple[str, Body]:
    stream = maybe(rng, 0.3, stream=True)
    return "/v1/messages", {"model": MODEL, "messages": messages_of(rng), "max_tokens": 6, "temperature": 0, **stream}


def response(rng: random.Random, prompts: Prompts) -> tuple[str, Body]:
    stream = maybe(rng, 0.3, stream=True)
    return "/v1/responses", {
        "model": MODEL, "input": rng.choice(TEXTS), "max_output_tokens": 16, "temperature": 0, **stream
    }  # fmt: skip


def text_work(rng: random.Random, prompts: Prompts) -> tuple[str, Body]:
    return rng.choice((
        ("/tokenize", {"model": MODEL, "prompt": rng.choice(TEXTS)}),
        ("/tokenize", {"model": MODEL, "messages": messages_of(rng)}),
        ("/detokenize", {"model": MODEL, "tokens": prompts.ids(rng)}),
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": messages_of(rng)}),
    ))  # fmt: skip


KINDS, WEIGHTS = (completion, chat, message, response, text_work), (6, 3, 1, 1, 1)


def valid(rng: random.Random, prompts: Prompts) -> tuple[str, Body]:
    [kind] = rng.choices(KINDS, WEIGHTS)
    return kind(rng, prompts)


def call_of_b(rng: random.Random, prompts: Prompts, number: int) -> Call:
    """Draw a request of B: mostly a valid one. /metrics, /load and /experts report on all tenants: B asks for none."""
    headers = {"x-request-id": f"b-{number}", "content-type": "application/json"}
    kind = rng.random()
    if kind < 0.04:
        return Call("/v1/models", None, headers)
    if kind < 0.12:
        return Call(*rng.choice(BAD), headers)
    path, body = valid(rng, prompts)
    return Call(path, json.dumps(body).encode(), headers, num_prompts(body.get("prompt")))


def num_prompts(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], list) else 1


def extreme(rng: random.Random, body: Body) -> Body:
    """Change the body to something that costs more than B's requests, or less."""
    return body | rng.choice((
        {"n": 64, "max_tokens": 3, "stream": False},
        {"n": 1024, "max_tokens": 1},
        {"max_tokens": 200, "ignore_eos": True},
        {"prompt": [[5]] * 40},
        {"logprobs": 20, "max_tokens": 40},
        {"logit_bias": {str(i): 1.0 for i in range(2900)}},
        {"timeout_s": 0.01},
        {"queue_timeout_s": 0.001},
        {"priority": -(2**31), "max_tokens": 60, "ignore_eos": True},
        {"structured_outputs": {"regex": "(a|b)*c{5,90}"}, "max_tokens": 30},
        {"structured_outputs": {"grammar": "start: nothing"}},
        {"cache_salt": "salt", "priority": -5},
    ))  # fmt: skip


def damaged(rng: random.Random, sent: bytes) -> bytes:
    """Return the request with some bytes replaced, removed or repeated."""
    changed = bytearray(sent)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        cut = slice(at, at + rng.choice((0, 1, 5)))
        changed[cut] = rng.choice((b"\0", b"\r\n", b"\n", b" ", b'"', b"\xff", b"9", b"", bytes(changed[:9])))
        changed = changed or bytearray(b"\r")
    return bytes(changed)


def frame(path: str, content: bytes | None, key: str, rng: random.Random) -> bytes:
    """Return the bytes of a request, whole or with a chunked body."""
    method = "GET" if content is None else "POST"
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {key}", "connection: close"]
    content = content or b""
    if rng.random() < 0.15:
        half = len(content) // 2
        lines.append("transfer-encoding: chunked")
        parts = [part for part in (content[:half], content[half:]) if part]
        content = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    else:
        lines.append(f"content-length: {len(content)}")
    lines.append("content-type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + content


def attack_of_a(rng: random.Random, prompts: Prompts, key: str) -> Attack:
    """Draw a request of A, legal or not."""
    kind = rng.random()
    path, content = rng.choice(BAD) if kind < 0.25 else (rng.choice(GETS), None)
    if kind > 0.3:
        path, body = valid(rng, prompts)
        content = json.dumps(extreme(rng, body) if rng.random() < 0.4 else body).encode()
    if rng.random() < 0.03:
        key = rng.choice(("", "wrong", "key-of-B", "é"))
    sent = frame(path, content, key, rng)
    if rng.random() < 0.1:
        sent = damaged(rng, sent)
    endings: tuple[Ending, ...] = ("read", "leave", "leave while it answers", "stop in the middle")
    [ending] = rng.choices(endings, (6, 1, 2, 1))
    if ending == "stop in the middle":
        sent = sent[: rng.randrange(1, len(sent) + 1)]
    return Attack(sent, ending, rng.choice((1, 200, 3000)))
